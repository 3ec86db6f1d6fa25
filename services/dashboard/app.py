"""`proxykd dashboard`: every run and study under a folder, from storage alone."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI
from starlette.responses import RedirectResponse

from actors.cluster.http_options import HttpOptions
from proxykd import __version__
from services.access.keys import PAGE, Guard
from services.access.refusals import refuse_as_openai_does
from services.dashboard.api import dashboard_api
from services.dashboard.library import Library
from services.dashboard.pages import mount_page
from services.dashboard.redis_of_run import redis_of_config

MAX_BODY_BYTES = 2**16


def dashboard_app(library: Library, http: HttpOptions) -> FastAPI:
    """Returns the dashboard of a library of runs: its page and API, behind API keys where there are any."""
    app = FastAPI(title="proxykd dashboard", version=__version__)
    app.add_middleware(Guard, key_digests=http.key_digests, max_body_bytes=MAX_BODY_BYTES, host=http.host)
    refuse_as_openai_does(app)
    app.include_router(dashboard_api(library, redis_of_config))
    mount_page(app)

    @app.get("/", include_in_schema=False)
    def root() -> RedirectResponse:
        return RedirectResponse(f"{PAGE}/{library.address}")

    return app


def serve_dashboard(folder: str, http: HttpOptions) -> None:
    """Shows a folder of runs, or one run or study. Blocks until Ctrl-C.

    Raises:
        RunError: there is no such folder.
        ResourceError: the port is taken.
    """
    library = Library.at(folder)
    http = http.at_a_free_port()
    print(f"runs in {folder}: http://{http.address}{PAGE}/{library.address} (Ctrl-C stops it)", flush=True)
    config = uvicorn.Config(
        dashboard_app(library, http),
        host=http.host,
        port=http.port,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run()
