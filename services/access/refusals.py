"""Every error of the routes, in the shape of OpenAI's API."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from proxykd.errors import ProxykdError

WORD = 40
"""Characters of an input that a message may hold."""


class ApiError(Exception):
    """An answer that is not 200, with the seconds after which asking again makes sense."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's API shapes it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refuse_as_openai_does(app: FastAPI) -> None:
    """What a route raises becomes its answer; what storage holds and cannot be read is a 409 with the fix."""

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> JSONResponse:
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
        return JSONResponse(body_of(error), error.status, headers)

    @app.exception_handler(ProxykdError)
    async def refuse_unreadable(request: Request, error: ProxykdError) -> JSONResponse:
        return await refuse(request, ApiError(409, str(error)))

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await refuse(request, first_problem(error.errors()))

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> JSONResponse:
        body = error_body(str(error.detail), "invalid_request_error")
        return JSONResponse(body, error.status_code, error.headers)


def body_of(error: ApiError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return error_body(error.message, kind, error.param, str(error.status))


def first_problem(errors: Any) -> ApiError:
    """The validation error that says most, by the field's name. Its input is shown where it is a short word: it may be
    anything, and of any size."""
    # Of a union's alternatives the ones of another type say only that they were not meant.
    told = next((error for error in errors if not error["type"].endswith("_type")), errors[0])
    parts = told["loc"][told["loc"][:1] in (("body",), ("query",), ("path",)) :]
    where = [str(part) for part in parts if isinstance(part, int) or _is_field(part)]
    return ApiError(400, f"{'.'.join(where) or 'body'}: {_words(told)}"[:500], param=where[0] if where else None)


def _is_field(part: str) -> bool:
    """Whether it is a name in the body, and not that of a union's alternative."""
    return part.isidentifier() and part not in ("str", "int", "float", "bool")


def _words(error: Any) -> str:
    facts, given = error.get("ctx", {}), error.get("input")
    if error["type"] == "extra_forbidden":
        return "not supported by the proxy"
    if error["type"] == "literal_error" and isinstance(given, str) and len(given) <= WORD:
        return f"{given!r} is not supported by the proxy, which takes {facts['expected']}"
    if error["type"] == "too_long":
        return f"at most {facts['max_length']}, got {facts['actual_length']}"
    return str(error["msg"])
