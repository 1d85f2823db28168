"""Turns an engine's tokens into chunks of text while the client is connected."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Literal

from starlette.requests import Request

from hydraft.infer.serve.detokenize import StopFilter, StreamDecoder
from hydraft.infer.serve.engine import Answer, Engine
from hydraft.infer.serve.parsing import SHOWN, AnswerParser
from hydraft.infer.serve.registry import ServedModel
from hydraft.infer.serve.responses import Chunk


class ClientDisconnected(Exception):
    """The client disconnected."""


async def chunks(
    answer: Answer, model: ServedModel, stops: list[str], parser: AnswerParser | None = None
) -> AsyncIterator[Chunk]:
    """The text of one answer, up to its end or the first stop sequence; with a ``parser``, its thoughts and calls apart.

    Raises:
        GenerationFailed: it will not be finished.
    """
    decoder, stop_filter = StreamDecoder(model.tokenizer, SHOWN if parser else ()), StopFilter(stops)
    count = 0
    async for tokens in answer.chunks():
        text, taken, ended = "", [], False
        for token in tokens:
            taken.append(token)
            ended = token in answer.ends
            text += stop_filter.add(decoder.add(token))
            if stop_filter.found or ended:
                break
        logprobs = answer.sampler.logprobs[count : count + len(taken)]
        count += len(taken)
        if not stop_filter.found and (ended or count >= answer.limit):
            text += stop_filter.add(decoder.end())
            text += stop_filter.end()
        finish: Literal["stop", "length", "tool_calls"] | None = None
        if stop_filter.found or ended:
            finish = "stop"
        elif count >= answer.limit:
            finish = "length"
        if parser is None:
            yield Chunk(text, taken, logprobs, finish)
        else:
            part = parser.add(text)
            if finish:
                part += parser.end()
                finish = "tool_calls" if finish == "stop" and parser.calls else finish
            yield Chunk(part.text, taken, logprobs, finish, part.reasoning, part.calls)
        if finish:
            return


async def merged_chunks(
    engine: Engine,
    request: Request,
    model: ServedModel,
    answers: list[Answer],
    stops: list[str],
    parser: Callable[[], AnswerParser | None],
) -> AsyncGenerator[tuple[int, Chunk], None]:
    """The chunks of several answers in the order in which they arrive. At the end, their slots are freed.

    Args:
        parser: makes the parser of each answer.

    Raises:
        GenerationFailed: one of them will not be finished.
        ClientDisconnected: the client closed the connection.
    """
    queue: asyncio.Queue[tuple[int, Chunk] | Exception] = asyncio.Queue()

    async def follow(index: int, answer: Answer) -> None:
        try:
            async for chunk in chunks(answer, model, stops, parser()):
                queue.put_nowait((index, chunk))
        except Exception as error:  # raised after the chunks that came before it
            queue.put_nowait(error)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        queue.put_nowait(ClientDisconnected())

    tasks = [asyncio.create_task(follow(index, answer)) for index, answer in enumerate(answers)]
    tasks.append(asyncio.create_task(watch()))
    left = len(answers)
    try:
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item[1].finish is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        for answer in answers:
            engine.cancel(answer)
