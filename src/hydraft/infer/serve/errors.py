"""Error responses in OpenAI's format."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from hydraft.infer.serve.text import printable

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

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, last: bool = False
    ) -> None:
        """``last``: the connection is closed after it."""
        super().__init__(message)
        self.status, self.message, self.code = status, printable(message), code
        self.param = None if param is None else printable(param)
        self.headers = {"Retry-After": "1"} if status in (429, 503) else {}
        if last:
            self.headers["Connection"] = "close"
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
        return explain(error).response()

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        allowed = (error.headers or {}).get("Allow")
        if request.method == "OPTIONS" and allowed:
            also = ", HEAD, OPTIONS" if "GET" in allowed else ", OPTIONS"
            return Response(status_code=204, headers={"Allow": allowed + also})
        answer = ApiError(error.status_code, str(error.detail)).response()
        answer.headers.update(error.headers or {})  # 405 has the allowed methods
        return answer

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "the server failed on this request").response()


def explain(error: RequestValidationError) -> ApiError:
    """The validation error of pydantic that says most, as one line."""
    problems, body = error.errors(), error.body

    def weight(each: Any) -> tuple[bool, bool, int]:
        return each["type"] == "refused", not each["type"].endswith("_type"), len(_path(each, body))

    problem = max(problems, key=weight)
    kind, place = problem["type"], _path(problem, body)
    context = problem.get("ctx", {})
    if kind == "json_invalid":
        return ApiError(400, f"The body is not JSON ({context.get('error', 'cannot be read')}).")
    param = context.get("param", ".".join(place))
    if not param:
        return ApiError(400, "The body must be a JSON object, sent as Content-Type: application/json.")
    if kind == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    return ApiError(400, f"Invalid '{param}': {problem['msg']}.", param, "invalid_value")


def _path(problem: Any, body: Any) -> list[str]:
    """Where in the body a problem is: its location without the names of the types that pydantic tried there."""
    path = []
    for place, part in enumerate(problem["loc"][1:], 2):
        if (isinstance(body, dict) and part in body) or (isinstance(body, list) and isinstance(part, int)):
            body = body[part]
            path.append(str(part))
        elif place == len(problem["loc"]) and problem["type"] in ("missing", "extra_forbidden"):
            path.append(str(part))
    return path
