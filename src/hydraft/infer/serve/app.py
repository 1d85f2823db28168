"""The routes."""

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
from hydraft.infer.serve.engine import Answer, Engine, Failed, Full
from hydraft.infer.serve.errors import Refused
from hydraft.infer.serve.metrics import Metrics
from hydraft.infer.serve.middleware import Gate
from hydraft.infer.serve.registry import ENCODER, Voice
from hydraft.infer.serve.responses import ChatCompletion, Chunk, Completion, Model, Models, Reply, failure
from hydraft.infer.serve.sampler import Sampling
from hydraft.infer.serve.schema import ChatRequest, CompletionRequest
from hydraft.infer.serve.schema import Request as Asked
from hydraft.infer.serve.streaming import Gone, together

PAGE = Path(__file__).with_name("page.html")
TOLD: dict[int | str, dict[str, Any]] = {
    status: {"model": errors.Error} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503)
}
EVENTS: dict[str, Any] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


def build(engine: Engine, voices: dict[str, Voice], serve: ServeConfig, key: str | None, local: bool) -> FastAPI:
    """The application; ``key`` guards it, ``local`` keeps it to names of this machine."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(title="hydraft", docs_url=None, redoc_url=None, lifespan=lifespan, responses=TOLD)
    metrics = Metrics(
        lambda: len(engine.running),
        lambda: len(engine.waiting),
        lambda: 1 - engine.blocks / engine.cache.num_blocks,
    )
    desk = Desk(engine, voices, metrics)
    started = int(time.time())
    errors.install(app)

    app.add_middleware(
        Gate, key=key, local=local, max_body=serve.max_body, count=lambda r, s: metrics.requests.labels(r, s).inc()
    )

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: EVENTS})
    async def chat(asked: ChatRequest, request: Request) -> Response:
        voice = desk.voice(asked.model)
        turns = [(message.role, message.text) for message in asked.messages]
        prompt = await desk.encoded("messages", voice.chat, turns)
        return await desk.answer(asked, request, voice, [prompt], chat=True)

    @app.post("/v1/completions", response_model=Completion, responses={200: EVENTS})
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        voice = desk.voice(asked.model)
        prompts = [await desk.encoded("prompt", voice.plain, prompt) for prompt in asked.prompts]
        return await desk.answer(asked, request, voice, prompts, chat=False)

    @app.get("/v1/models")
    async def models() -> Models:
        return Models(data=[Model(id=name, created=started) for name in voices])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        return Model(id=desk.voice(name).name, created=started)

    @app.get("/health", responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}})
    async def health() -> JSONResponse:
        well = engine.alive and not engine.closed
        return JSONResponse({"status": "ok" if well else "ending"}, 200 if well else 503)

    @app.get("/metrics", include_in_schema=False)
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE, headers={"Content-Security-Policy": CSP, "X-Frame-Options": "DENY"})

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version="1", routes=app.routes)
            for operation in (operation for path in schema["paths"].values() for operation in path.values()):
                operation["responses"].pop("422", None)  # FastAPI adds it; here a wrong value is a 400, as OpenAI's
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"


class Desk:
    """From a request to its answer."""

    def __init__(self, engine: Engine, voices: dict[str, Voice], metrics: Metrics) -> None:
        self.engine, self.voices, self.metrics = engine, voices, metrics

    def voice(self, name: str) -> Voice:
        """Who is asked."""
        if name not in self.voices:
            there = ", ".join(self.voices)
            raise Refused(404, f"The model '{name}' does not exist (there are: {there}).", "model", "model_not_found")
        return self.voices[name]

    async def encoded(self, param: str, encode: Any, text: Any) -> list[int]:
        """A prompt's ids, made where they hold up no one."""
        try:
            ids: list[int] = await asyncio.get_running_loop().run_in_executor(ENCODER, encode, text)
        except ConfigError as error:
            raise Refused(400, str(error), param, "invalid_value") from error
        except (UnicodeError, TypeError) as error:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
            raise Refused(400, f"Invalid '{param}': not Unicode text.", param, "invalid_value") from error
        if not ids:
            raise Refused(400, f"Invalid '{param}': has no tokens.", param, "invalid_value")
        return ids

    async def answer(
        self, asked: Asked, request: Request, voice: Voice, prompts: list[list[int]], chat: bool
    ) -> Response:
        """Ask for it, and send it whole or as it comes."""
        answers = self._answers(asked, voice, prompts)
        self._ask(answers)
        reply = Reply(
            chat=chat,
            id=("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            created=int(time.time()),
            model=voice.name,
            prompt_tokens=sum(map(len, prompts)),
            logprobs=asked.top is not None,
            usage=bool(asked.stream_options and asked.stream_options.include_usage),
            decode=voice.text,
        )
        pieces = self._counted(together(self.engine, request, voice, answers, asked.stops), voice, answers, prompts)
        if asked.stream:
            events = self._events(reply, len(answers), pieces)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        found: list[list[Chunk]] = [[] for _ in answers]
        try:
            async with aclosing(pieces):
                async for index, chunk in pieces:
                    found[index].append(chunk)
        except Failed as error:
            raise Refused(503, str(error), code="unfinished") from error
        except Gone:
            return Response(status_code=499)  # no one reads it
        return Response(json.dumps(reply.whole(found), ensure_ascii=False), media_type="application/json")

    async def _events(
        self, reply: Reply, count: int, pieces: AsyncGenerator[tuple[int, Chunk], None]
    ) -> AsyncIterator[str]:
        written = 0
        try:
            for index in range(count):
                yield reply.opening(index)
            async with aclosing(pieces):
                async for index, chunk in pieces:
                    written += len(chunk.tokens)
                    yield reply.piece(index, chunk)
            yield reply.closing(written)
        except Failed as error:
            yield failure(Refused(503, str(error), code="unfinished").body()) + "data: [DONE]\n\n"
        except Gone:
            return

    def _answers(self, asked: Asked, voice: Voice, prompts: list[list[int]]) -> list[Answer]:
        count, most = asked.n or 1, self.engine.serve.max_running + self.engine.serve.max_waiting
        if len(prompts) * count > most:
            raise Refused(
                400, f"Invalid 'n': {len(prompts) * count} answers at once, and at most {most} fit here.", "n"
            )
        bias = tuple((int(token), value) for token, value in (asked.logit_bias or {}).items())
        if wrong := [token for token, _ in bias if token >= self.engine.vocabulary]:
            raise Refused(400, f"Invalid 'logit_bias': there is no token {wrong[0]}.", "logit_bias", "invalid_value")
        if asked.top and asked.top > self.engine.vocabulary:
            raise Refused(
                400, f"Invalid 'top_logprobs': the model has {self.engine.vocabulary} tokens.", "top_logprobs"
            )
        answers = []
        for prompt in prompts:
            limit = self._limit(asked, len(prompt))
            for index in range(count):
                seed = None if asked.seed is None else f"{asked.seed}/{index}"
                sampling = Sampling(
                    temperature=1.0 if asked.temperature is None else asked.temperature,
                    top_p=1.0 if asked.top_p is None else asked.top_p,
                    seed=seed,
                    top_logprobs=asked.top,
                    presence_penalty=asked.presence_penalty or 0.0,
                    frequency_penalty=asked.frequency_penalty or 0.0,
                    logit_bias=bias,
                )
                answers.append(Answer(prompt, limit, voice.ends, voice.adapter, sampling))
        return answers

    def _limit(self, asked: Asked, prompt: int) -> int:
        """Tokens the answer may have, by what is asked for and what there is room for."""
        room, most = self.engine.max_context, self.engine.serve.max_tokens
        if asked.limit is not None and asked.limit > most:
            raise Refused(
                400, f"max_tokens={asked.limit} is too large: answers have at most {most} tokens here.", "max_tokens"
            )
        if prompt + (asked.limit or 1) > room:
            wanted = f" and {asked.limit} for the answer" if asked.limit else ""
            raise Refused(
                400,
                f"This model's maximum context length is {room} tokens, and you asked for {prompt} in the prompt{wanted}.",
                "messages",
                "context_length_exceeded",
            )
        return asked.limit or min(most, room - prompt)

    def _ask(self, answers: list[Answer]) -> None:
        try:
            self.engine.ask(answers)
        except Full:
            serve = self.engine.serve
            message = f"{serve.max_running} answers are being written and {serve.max_waiting} may wait: come again."
            raise Refused(429, message, code="rate_limit_exceeded") from None
        except Failed as error:
            raise Refused(503, str(error)) from error

    async def _counted(
        self,
        pieces: AsyncGenerator[tuple[int, Chunk], None],
        voice: Voice,
        answers: list[Answer],
        prompts: list[list[int]],
    ) -> AsyncGenerator[tuple[int, Chunk], None]:
        """The pieces, and what they come to in the metrics."""
        self.metrics.prompt.labels(voice.name).inc(sum(map(len, prompts)))
        told: set[int] = set()
        left = len(answers)
        try:
            async with aclosing(pieces):
                async for index, chunk in pieces:
                    answer = answers[index]
                    if index not in told and answer.first_at is not None:
                        told.add(index)
                        self.metrics.first.observe(answer.first_at - answer.asked_at)
                    self.metrics.written.labels(voice.name).inc(len(chunk.tokens))
                    if chunk.finish:
                        left -= 1
                        self.metrics.whole.observe(time.monotonic() - answer.asked_at)
                    yield index, chunk
        except Failed:
            left = 0
            raise
        finally:  # a client that leaves is seen here, or by starlette, which then drops us
            self.metrics.left.inc(left > 0)
