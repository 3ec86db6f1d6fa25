"""/docs: every route and field by Swagger UI, from files of this machine and the document that the app makes."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from services.access.keys import DOCS

PAGE = Path(__file__).parent / "static" / "docs"
SWAGGER = Path(fastapi_offline.__file__).parent / "static"
HEADERS = {
    # Swagger UI sets styles on its elements, and shows images of its own as data.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def mount_docs(app: FastAPI) -> None:
    """Its addresses are relative, so that it works behind any prefix."""

    @app.get(DOCS, include_in_schema=False)
    def with_slash() -> RedirectResponse:
        return RedirectResponse(f".{DOCS}/")

    app.mount(f"{DOCS}/swagger", _Files(directory=SWAGGER), name="swagger")
    app.mount(DOCS, _Files(directory=PAGE, html=True), name="docs")
