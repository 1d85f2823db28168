"""The FastAPI application of the server: its routes, and how a completion request is answered."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import FileResponse, JSONResponse, Response

from hydraft.infer.serve import errors
from hydraft.infer.serve.completions import CompletionHandler
from hydraft.infer.serve.engine import Engine
from hydraft.infer.serve.metrics import Metrics
from hydraft.infer.serve.middleware import Access, AccessMiddleware
from hydraft.infer.serve.registry import ServedModel
from hydraft.infer.serve.responses import ChatCompletion, Completion, Model, Models
from hydraft.infer.serve.schema import ChatRequest, CompletionRequest

PAGE = Path(__file__).with_name("page.html")
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": errors.Error} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503)
}
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
EVENTS: dict[str, Any] = {"content": {"text/event-stream": {"itemSchema": EVENT}}}
"""An answer that is streamed: server-sent events, one for each piece (``itemSchema`` of OpenAPI 3.2, as FastAPI writes it)."""


CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"


def build(engine: Engine, models: dict[str, ServedModel], access: Access, examples: Sequence[str] = ()) -> FastAPI:
    """The application. ``examples``: prompts that the chat page offers; without any, it has some of its own."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(title="hydraft", docs_url=None, redoc_url=None, lifespan=lifespan, responses=ERROR_RESPONSES)
    metrics = Metrics(
        lambda: len(engine.running),
        lambda: len(engine.waiting),
        lambda: 1 - engine.free_blocks / engine.cache.num_blocks,
    )
    errors.install(app)
    app.add_middleware(
        AccessMiddleware,
        access=access,
        count=lambda route, status: metrics.requests.labels(route, status).inc(),
    )
    handler = CompletionHandler(engine, models, metrics)
    _add_completions(app, handler)
    _add_models(app, handler)
    _add_status(app, engine, metrics)
    _add_page(app, list(examples))
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_completions(app: FastAPI, handler: CompletionHandler) -> None:
    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: EVENTS})
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await handler.chat(body, request)

    @app.post("/v1/completions", response_model=Completion, responses={200: EVENTS})
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await handler.complete(body, request)


def _add_models(app: FastAPI, handler: CompletionHandler) -> None:
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> Models:
        return Models(data=[Model(id=name, created=started) for name in handler.models])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        return Model(id=handler.model(name).name, created=started)


def _add_status(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    """Health and metrics."""

    @app.get("/health", responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}})
    async def health() -> JSONResponse:
        healthy = engine.alive and not engine.closed
        return JSONResponse({"status": "ok" if healthy else "ending"}, 200 if healthy else 503)

    @app.get("/metrics", include_in_schema=False)
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI, examples: list[str]) -> None:
    """The chat page, and the prompts that it offers."""

    @app.get("/examples", include_in_schema=False)
    async def read_examples() -> JSONResponse:
        return JSONResponse(examples)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE, headers={"Content-Security-Policy": CSP, "X-Frame-Options": "DENY"})


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI schema without 422, which FastAPI adds: invalid values are a 400 here, as in OpenAI's API."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version="1", routes=app.routes)
        for operation in (operation for path in schema["paths"].values() for operation in path.values()):
            operation["responses"].pop("422", None)
        app.openapi_schema = schema
    return app.openapi_schema
