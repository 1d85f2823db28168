"""The queue of prompts: short ones first, none for ever, and no more than fit."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from hydraft.infer.serve import encoder
from hydraft.infer.serve.encoder import ClientGone, Encoder, EncoderFull


async def here() -> bool:
    return False


async def gone() -> bool:
    return True


def queue_behind_one(*sizes: int) -> list[int]:
    """The order in which work of these sizes is done, if all of it arrives while other work is being done."""

    async def main() -> list[int]:
        queue, done, first = Encoder(), list[int](), threading.Event()

        def work(size: int) -> Callable[[], None]:
            return lambda: done.append(size)

        running = asyncio.create_task(queue.run(1, first.wait, here))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(queue.run(size, work(size), here)) for size in sizes]
        await asyncio.sleep(0)
        first.set()
        await asyncio.gather(running, *waiting)
        return done

    return asyncio.run(main())


def test_short_prompts_overtake_long_ones() -> None:
    assert queue_behind_one(900_000, 800_000, 10, 20) == [10, 20, 800_000, 900_000]


def test_a_long_prompt_is_overtaken_only_by_what_comes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "OVERTAKEN", 1e15)
    assert queue_behind_one(900_000, 10, 20) == [900_000, 10, 20]


def test_a_full_queue_refuses_and_those_who_leave_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "MOST", 2)
    done: list[str] = []

    async def main() -> None:
        queue, first = Encoder(), threading.Event()
        running = asyncio.create_task(queue.run(1, first.wait, here))
        await asyncio.sleep(0)
        one, two = (asyncio.create_task(queue.run(1, lambda name=name: done.append(name), here)) for name in "ab")
        await asyncio.sleep(0)
        with pytest.raises(EncoderFull):
            await queue.run(1, lambda: done.append("c"), here)
        one.cancel()
        await asyncio.sleep(0)
        left = asyncio.create_task(queue.run(1, lambda: done.append("left"), gone))
        await asyncio.sleep(0)
        first.set()
        await asyncio.gather(running, two)
        with pytest.raises(ClientGone):
            await left
        await queue.run(1, lambda: done.append("d"), here)

    asyncio.run(main())
    assert done == ["b", "d"]


def test_an_error_of_the_work_leaves_the_queue_usable() -> None:
    async def main() -> int:
        queue = Encoder()
        with pytest.raises(ZeroDivisionError):
            await queue.run(1, lambda: 1 // 0, here)
        return await queue.run(1, lambda: 7, here)

    assert asyncio.run(main()) == 7
