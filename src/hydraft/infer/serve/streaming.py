"""From the engine's tokens to pieces of answers, for as long as the client is there."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.requests import Request

from hydraft.infer.serve.detokenize import Pieces, Stops
from hydraft.infer.serve.engine import Answer, Engine
from hydraft.infer.serve.registry import Voice
from hydraft.infer.serve.responses import Chunk


class Gone(Exception):
    """The client left."""


async def chunks(answer: Answer, voice: Voice, stops: list[str]) -> AsyncIterator[Chunk]:
    """One answer as text, up to its end or the first stop sequence.

    Raises:
        Failed: it will not be finished.
    """
    pieces, shown = Pieces(voice.tokenizer), Stops(stops)
    count = 0
    async for tokens in answer.pieces():
        text, taken, ended = "", [], False
        for token in tokens:
            taken.append(token)
            ended = token in answer.ends
            text += shown.add(pieces.add(token))
            if shown.met or ended:
                break
        told = answer.draw.likelihoods[count : count + len(taken)]
        count += len(taken)
        if not shown.met and (ended or count >= answer.limit):
            text += shown.add(pieces.end())
            text += shown.end()
        if shown.met or ended:
            yield Chunk(text, taken, told, "stop")
            return
        if count >= answer.limit:
            yield Chunk(text, taken, told, "length")
            return
        yield Chunk(text, taken, told)


async def together(
    engine: Engine, request: Request, voice: Voice, answers: list[Answer], stops: list[str]
) -> AsyncGenerator[tuple[int, Chunk], None]:
    """The pieces of several answers as they come. However this ends, their slots are wanted back.

    Raises:
        Failed: one of them will not be finished.
        Gone: no one reads them any more.
    """
    queue: asyncio.Queue[tuple[int, Chunk] | Exception] = asyncio.Queue()

    async def follow(index: int, answer: Answer) -> None:
        try:
            async for chunk in chunks(answer, voice, stops):
                queue.put_nowait((index, chunk))
        except Exception as error:  # told in the order in which it happened
            queue.put_nowait(error)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        queue.put_nowait(Gone())

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
            engine.leave(answer)
