"""Every error of the routes, in the shape of OpenAI's API."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from proxykd.errors import ProxykdError


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
    """The first validation error by name. Never its input: that may be anything, and of any size."""
    where = [str(part) for part in errors[0]["loc"] if part not in ("body", "query", "path")]
    return ApiError(400, f"{'.'.join(where) or 'body'}: {errors[0]['msg']}"[:500], param=where[0] if where else None)
