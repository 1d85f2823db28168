"""How a completion request is answered: its prompts encoded, its answers generated and sent."""

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from hydraft.errors import ConfigError
from hydraft.infer.serve.encoder import MOST, ClientGone, Encoder, EncoderFull
from hydraft.infer.serve.engine import Answer, Engine, GenerationFailed, QueueFull
from hydraft.infer.serve.errors import ApiError
from hydraft.infer.serve.metrics import Metrics
from hydraft.infer.serve.parsing import AnswerParser
from hydraft.infer.serve.registry import PromptTooLong, ServedModel
from hydraft.infer.serve.responses import Chunk, ResponseBuilder, failure
from hydraft.infer.serve.sampler import Sampling
from hydraft.infer.serve.schema import ChatRequest, CompletionRequest
from hydraft.infer.serve.schema import Request as Body
from hydraft.infer.serve.streaming import ClientDisconnected, merged_chunks
from hydraft.infer.serve.text import as_json

Encode = Callable[[], list[list[int]]]
"""Makes the ids of a request's prompts."""


class CompletionHandler:
    """Answers completion requests."""

    def __init__(self, engine: Engine, models: dict[str, ServedModel], metrics: Metrics) -> None:
        self.engine, self.models, self.metrics, self.encoder = engine, models, metrics, Encoder()

    def model(self, name: str) -> ServedModel:
        """The model of that name."""
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"The model '{name}' does not exist (there are: {known}).", "model", "model_not_found")
        return self.models[name]

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """The answers to a conversation."""
        model = self.model(body.model)
        self._count(body, 1)
        return await self._answered("messages", body, request, model, lambda: [model.chat(body, self._room)])

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """The continuations of texts."""
        model = self.model(body.model)
        self._count(body, len(body.prompts))
        return await self._answered(
            "prompt", body, request, model, lambda: [model.plain(prompt, self._room) for prompt in body.prompts]
        )

    @property
    def _room(self) -> int:
        """The most tokens of a prompt: one is left for the answer."""
        return int(self.engine.max_context) - 1

    def _count(self, body: Body, prompts: int) -> None:
        """Refuse more answers than are accepted at once, before anything is encoded."""
        count, most = prompts * (body.n or 1), self.engine.serve.max_running + self.engine.serve.max_waiting
        if count > most:
            raise ApiError(400, f"Invalid 'n': {count} answers at once, where at most {most} are accepted.", "n")

    async def _encoded(self, param: str, request: Request, encode: Encode) -> list[list[int]]:
        """The ids of the prompts, encoded in another thread."""
        try:
            prompts = await self.encoder.run(len(await request.body()), encode, request.is_disconnected)
        except EncoderFull:
            raise ApiError(
                429, f"{MOST} prompts wait to be encoded: retry later.", code="rate_limit_exceeded"
            ) from None
        except PromptTooLong as error:
            raise self._too_long(f"at least {error.least}", None) from None
        except ConfigError as error:
            raise ApiError(400, str(error), param, "invalid_value") from error
        except (UnicodeError, TypeError, RecursionError) as error:
            raise ApiError(400, f"Invalid '{param}': cannot be rendered.", param, "invalid_value") from error
        if not all(prompts):
            raise ApiError(400, f"Invalid '{param}': has no tokens.", param, "invalid_value")
        return prompts

    async def _answered(self, param: str, body: Body, request: Request, model: ServedModel, encode: Encode) -> Response:
        """Encode the prompts, generate the answers, and send them complete or as a stream. ``param`` has the prompts, for errors."""
        try:
            prompts = await self._encoded(param, request, encode)
        except ClientGone:
            return Response(status_code=499)  # nobody reads it
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
        return Response(as_json(builder.complete(found)), media_type="application/json")

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
            for index in range(body.n or 1):
                seed = None if body.seed is None else f"{body.seed}/{index}"
                sampling = Sampling(
                    temperature=1.0 if body.temperature is None else body.temperature,
                    top_p=1.0 if body.top_p is None else body.top_p,
                    top_k=min(max(0, body.top_k or 0), self.engine.vocabulary),
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
            raise self._too_long(str(prompt), body.limit)
        return body.limit or min(most, room - prompt)

    def _too_long(self, prompt: str, limit: int | None) -> ApiError:
        wanted = f" and {limit} for the answer" if limit else ""
        room = f"This model's maximum context length is {self.engine.max_context} tokens"
        message = f"{room}, and you asked for {prompt} in the prompt{wanted}."
        return ApiError(400, message, "messages", "context_length_exceeded")

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
