"""The FastAPI application of the server: its routes, and how a completion request is answered."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from hydraft.config.serve import ServeConfig
from hydraft.errors import ConfigError
from hydraft.infer.serve import errors
from hydraft.infer.serve.engine import Answer, Engine, GenerationFailed, QueueFull
from hydraft.infer.serve.errors import ApiError
from hydraft.infer.serve.metrics import Metrics
from hydraft.infer.serve.middleware import AccessMiddleware
from hydraft.infer.serve.parsing import AnswerParser
from hydraft.infer.serve.registry import ENCODER, ServedModel
from hydraft.infer.serve.responses import ChatCompletion, Chunk, Completion, Model, Models, ResponseBuilder, failure
from hydraft.infer.serve.sampler import Sampling
from hydraft.infer.serve.schema import ChatRequest, CompletionRequest
from hydraft.infer.serve.schema import Request as Body
from hydraft.infer.serve.streaming import ClientDisconnected, merged_chunks

PAGE = Path(__file__).with_name("page.html")
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": errors.Error} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503)
}
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
EVENTS: dict[str, Any] = {"content": {"text/event-stream": {"itemSchema": EVENT}}}
"""An answer that is streamed: server-sent events, one for each piece (``itemSchema`` of OpenAPI 3.2, as FastAPI writes it)."""


CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"


def build(engine: Engine, models: dict[str, ServedModel], serve: ServeConfig, key: str | None, local: bool) -> FastAPI:
    """The application. ``key``: the API key, or None for no key. ``local``: accept host names of this machine only."""

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
        key=key,
        local=local,
        max_body=serve.max_body,
        count=lambda route, status: metrics.requests.labels(route, status).inc(),
    )
    handler = CompletionHandler(engine, models, metrics)
    _add_completions(app, handler)
    _add_models(app, handler)
    _add_status(app, engine, metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_completions(app: FastAPI, handler: "CompletionHandler") -> None:
    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: EVENTS})
    async def chat(body: ChatRequest, request: Request) -> Response:
        model = handler.model(body.model)
        prompt = await handler.encoded("messages", model.chat, body)
        return await handler.answer(body, request, model, [prompt])

    @app.post("/v1/completions", response_model=Completion, responses={200: EVENTS})
    async def complete(body: CompletionRequest, request: Request) -> Response:
        model = handler.model(body.model)
        prompts = [await handler.encoded("prompt", model.plain, prompt) for prompt in body.prompts]
        return await handler.answer(body, request, model, prompts)


def _add_models(app: FastAPI, handler: "CompletionHandler") -> None:
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> Models:
        return Models(data=[Model(id=name, created=started) for name in handler.models])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        return Model(id=handler.model(name).name, created=started)


def _add_status(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    """Health, metrics and the chat page."""

    @app.get("/health", responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}})
    async def health() -> JSONResponse:
        healthy = engine.alive and not engine.closed
        return JSONResponse({"status": "ok" if healthy else "ending"}, 200 if healthy else 503)

    @app.get("/metrics", include_in_schema=False)
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

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


class CompletionHandler:
    """Answers completion requests."""

    def __init__(self, engine: Engine, models: dict[str, ServedModel], metrics: Metrics) -> None:
        self.engine, self.models, self.metrics = engine, models, metrics

    def model(self, name: str) -> ServedModel:
        """The model of that name."""
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"The model '{name}' does not exist (there are: {known}).", "model", "model_not_found")
        return self.models[name]

    async def encoded(self, param: str, encode: Any, text: Any) -> list[int]:
        """The ids of a prompt, encoded in another thread."""
        try:
            ids: list[int] = await asyncio.get_running_loop().run_in_executor(ENCODER, encode, text)
        except ConfigError as error:
            raise ApiError(400, str(error), param, "invalid_value") from error
        except (UnicodeError, TypeError) as error:  # an unpaired surrogate, which JSON can hold and UTF-8 cannot
            raise ApiError(400, f"Invalid '{param}': not Unicode text.", param, "invalid_value") from error
        if not ids:
            raise ApiError(400, f"Invalid '{param}': has no tokens.", param, "invalid_value")
        return ids

    async def answer(
        self, body: ChatRequest | CompletionRequest, request: Request, model: ServedModel, prompts: list[list[int]]
    ) -> Response:
        """Generate the answers, and send them complete or as a stream."""
        answers = self._answers(body, model, prompts)
        self._submit(answers)
        builder = ResponseBuilder(
            chat=isinstance(body, ChatRequest),
            id=("chatcmpl-" if isinstance(body, ChatRequest) else "cmpl-") + uuid.uuid4().hex,
            created=int(time.time()),
            model=model.name,
            prompt_tokens=sum(map(len, prompts)),
            logprobs=body.top is not None,
            usage=bool(body.stream_options and body.stream_options.include_usage),
            decode=model.text,
        )

        def parser() -> AnswerParser | None:
            return model.parser(body, prompts[0]) if isinstance(body, ChatRequest) else None

        chunks = merged_chunks(self.engine, request, model, answers, body.stops, parser)
        pieces = self._counted(chunks, model, answers, prompts)
        if body.stream:
            events = self._events(builder, len(answers), pieces)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        found: list[list[Chunk]] = [[] for _ in answers]
        try:
            async with aclosing(pieces):
                async for index, chunk in pieces:
                    found[index].append(chunk)
        except GenerationFailed as error:
            raise ApiError(503, str(error), code="unfinished") from error
        except ClientDisconnected:
            return Response(status_code=499)  # nobody reads it
        return Response(json.dumps(builder.complete(found), ensure_ascii=False), media_type="application/json")

    async def _events(
        self, builder: ResponseBuilder, count: int, pieces: AsyncGenerator[tuple[int, Chunk], None]
    ) -> AsyncIterator[str]:
        generated = 0
        try:
            for index in range(count):
                yield builder.first_event(index)
            async with aclosing(pieces):
                async for index, chunk in pieces:
                    generated += len(chunk.tokens)
                    yield builder.events(index, chunk)
            yield builder.last_events(generated)
        except GenerationFailed as error:
            yield failure(ApiError(503, str(error), code="unfinished").body()) + "data: [DONE]\n\n"
        except ClientDisconnected:
            return

    def _answers(self, body: Body, model: ServedModel, prompts: list[list[int]]) -> list[Answer]:
        count, most = body.n or 1, self.engine.serve.max_running + self.engine.serve.max_waiting
        if len(prompts) * count > most:
            raise ApiError(
                400, f"Invalid 'n': {len(prompts) * count} answers at once, where at most {most} are accepted.", "n"
            )
        bias = tuple((int(token), value) for token, value in (body.logit_bias or {}).items())
        if wrong := [token for token, _ in bias if token >= self.engine.vocabulary]:
            raise ApiError(400, f"Invalid 'logit_bias': there is no token {wrong[0]}.", "logit_bias", "invalid_value")
        if body.top and body.top > self.engine.vocabulary:
            raise ApiError(
                400, f"Invalid 'top_logprobs': the model has {self.engine.vocabulary} tokens.", "top_logprobs"
            )
        answers = []
        for prompt in prompts:
            limit = self._limit(body, len(prompt))
            for index in range(count):
                seed = None if body.seed is None else f"{body.seed}/{index}"
                sampling = Sampling(
                    temperature=1.0 if body.temperature is None else body.temperature,
                    top_p=1.0 if body.top_p is None else body.top_p,
                    top_k=max(0, body.top_k or 0),
                    min_p=body.min_p or 0.0,
                    repetition_penalty=body.repetition_penalty or 1.0,
                    seed=seed,
                    top_logprobs=body.top,
                    presence_penalty=body.presence_penalty or 0.0,
                    frequency_penalty=body.frequency_penalty or 0.0,
                    logit_bias=bias,
                )
                answers.append(Answer(prompt, limit, model.ends, model.adapter, sampling))
        return answers

    def _limit(self, body: Body, prompt: int) -> int:
        """The most tokens of an answer, by the request, the settings and the context length."""
        room, most = self.engine.max_context, self.engine.serve.max_tokens
        if body.limit is not None and body.limit > most:
            raise ApiError(
                400, f"max_tokens={body.limit} is too large: answers have at most {most} tokens here.", "max_tokens"
            )
        if prompt + (body.limit or 1) > room:
            wanted = f" and {body.limit} for the answer" if body.limit else ""
            raise ApiError(
                400,
                f"This model's maximum context length is {room} tokens, and you asked for {prompt} in the prompt{wanted}.",
                "messages",
                "context_length_exceeded",
            )
        return body.limit or min(most, room - prompt)

    def _submit(self, answers: list[Answer]) -> None:
        try:
            self.engine.submit(answers)
        except QueueFull:
            serve = self.engine.serve
            message = f"{serve.max_running} answers are running and {serve.max_waiting} are waiting: retry later."
            raise ApiError(429, message, code="rate_limit_exceeded") from None
        except GenerationFailed as error:
            raise ApiError(503, str(error)) from error

    async def _counted(
        self,
        pieces: AsyncGenerator[tuple[int, Chunk], None],
        model: ServedModel,
        answers: list[Answer],
        prompts: list[list[int]],
    ) -> AsyncGenerator[tuple[int, Chunk], None]:
        """Pass the chunks on and count them in the metrics."""
        self.metrics.prompt.labels(model.name).inc(sum(map(len, prompts)))
        started: set[int] = set()
        left = len(answers)
        try:
            async with aclosing(pieces):
                async for index, chunk in pieces:
                    answer = answers[index]
                    if index not in started and answer.first_token_at is not None:
                        started.add(index)
                        self.metrics.first.observe(answer.first_token_at - answer.submitted_at)
                    self.metrics.written.labels(model.name).inc(len(chunk.tokens))
                    if chunk.finish:
                        left -= 1
                        self.metrics.duration.observe(time.monotonic() - answer.submitted_at)
                    yield index, chunk
        except GenerationFailed:
            left = 0
            raise
        finally:  # after a disconnect, starlette may close this generator
            self.metrics.left.inc(left > 0)
