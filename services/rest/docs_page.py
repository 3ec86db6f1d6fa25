"""/docs: every route and field by Swagger UI, from files of this machine and the document that the app makes."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from starlette.responses import RedirectResponse

from services.access.keys import DOCS
from services.dashboard.pages import Page

PAGE = Path(__file__).parent / "static" / "docs"
SWAGGER = Path(fastapi_offline.__file__).parent / "static"
POLICY = (
    # Swagger UI sets styles on its elements, and shows images of its own as data.
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def mount_docs(app: FastAPI) -> None:
    """Its addresses are relative, so that it works behind any prefix."""

    @app.get(DOCS, include_in_schema=False)
    def with_slash() -> RedirectResponse:
        return RedirectResponse(f".{DOCS}/")

    app.mount(f"{DOCS}/swagger", Page(SWAGGER, POLICY), name="swagger")
    app.mount(DOCS, Page(PAGE, POLICY), name="docs")
