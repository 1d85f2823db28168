"""Error responses in OpenAI's format."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

KINDS = {401: "authentication_error", 429: "rate_limit_error"}
"""OpenAI's error type by status; other 4xx are an ``invalid_request_error``, and 5xx a ``server_error``."""


class ErrorDetail(BaseModel):
    """The ``error`` object."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class ApiError(Exception):
    """An error with an HTTP status, for the client."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {"Retry-After": "1"} if status in (429, 503) else {}
        if status == 401:
            self.headers["WWW-Authenticate"] = 'Basic realm="hydraft"'  # a browser then prompts for the key

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's format."""
        kind = "server_error" if self.status >= 500 else KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The HTTP response."""
        return JSONResponse(self.body(), self.status, self.headers)


def install(app: FastAPI) -> None:
    """Register exception handlers that respond in this format."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _explain(error.errors()[0]).response()

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        answer = ApiError(error.status_code, str(error.detail)).response()
        answer.headers.update(error.headers or {})  # 405 has the allowed methods
        return answer

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "the server failed on this request").response()


def _explain(problem: Any) -> ApiError:
    """The first validation error of pydantic as one line."""
    kind, place = problem["type"], [str(part) for part in problem["loc"][1:]]
    if kind == "json_invalid":
        return ApiError(400, f"The body is not JSON ({problem.get('ctx', {}).get('error', 'cannot be read')}).")
    if not place:
        return ApiError(400, "The body must be a JSON object, sent as Content-Type: application/json.")
    param = ".".join(place)
    if kind == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    return ApiError(400, f"Invalid '{param}': {problem['msg']}.", param, "invalid_value")
