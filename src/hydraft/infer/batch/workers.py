"""Generates the answers to buckets of prompts, in this process or in one process per GPU."""

import multiprocessing
import queue
from collections.abc import Iterator
from typing import Any

from transformers import set_seed

from hydraft.config.bounds import LARGEST_SEED
from hydraft.config.infer import InferConfig
from hydraft.errors import RunFailed
from hydraft.infer import processes as each
from hydraft.infer.batch.journal import Answers, Bucket
from hydraft.infer.generate import answers, generation_config
from hydraft.infer.load import LoadedModel, load
from hydraft.infer.source import Source
from hydraft.launch.local import elastic
from hydraft.models import generation
from hydraft.system.hardware import detect
from hydraft.system.plain_console import PlainConsole


def answer_bucket(loaded: LoadedModel, bucket: Bucket, options: InferConfig) -> Answers:
    """The answers to one bucket."""
    number, indices, prompts = bucket
    selected = loaded.select()
    set_seed((options.seed + number) % (LARGEST_SEED + 1))
    ends = generation_config(loaded, selected, options).eos_token_id
    made = answers(loaded, selected, prompts, options)
    found = []
    for index, prompt, ids in zip(indices, prompts, made, strict=True):
        read = generation.read_answer(selected.tokenizer, prompt, ids)
        found.append(
            {
                "index": index,
                "answer": read.text,
                **({"reasoning_content": read.thoughts} if read.thoughts else {}),
                "tokens": len(ids),
                "finish": "stop" if ids and ids[-1] in ends else "length",
            }
        )
    return found


def work(
    left: list[Bucket], loaded: LoadedModel | None, source: Source, options: InferConfig, count: int
) -> Iterator[tuple[int, Answers]]:
    """Answer the buckets ``left`` with ``loaded``, or in ``count`` processes that each load the source; yield each when done."""
    if loaded is not None:
        for bucket in left:
            yield bucket[0], answer_bucket(loaded, bucket, options)
    elif left:
        yield from _shared(left, source, options, min(count, len(left)))


def _shared(left: list[Bucket], source: Source, options: InferConfig, count: int) -> Iterator[tuple[int, Answers]]:
    """Distribute the buckets over ``count`` processes, each of which takes the next when it has finished one."""
    context: Any = multiprocessing.get_context(elastic.start_method(detect()))
    todo, done = context.Queue(), context.Queue()
    for item in [*left, *[None] * count]:
        todo.put(item)
    processes = [
        context.Process(target=_process, args=(rank, count, source, options, todo, done), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        ended: set[int] = set()
        for _ in left:
            yield _next(done, processes, ended)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()


def _next(done: Any, processes: list[Any], ended: set[int]) -> tuple[int, Answers]:
    """The next bucket that is done; the processes that had nothing more to do are added to ``ended``.

    Raises:
        RunFailed: a process died or reported an error.
    """
    while True:
        for rank, process in enumerate(processes):
            if process.exitcode not in (None, 0):
                raise RunFailed(
                    f"process {rank} {each.ended(process.exitcode)}; the same command resumes where it stopped"
                )
        silent = [rank for rank, process in enumerate(processes) if process.exitcode == 0 and rank not in ended]
        try:
            found = done.get(timeout=1)
        except queue.Empty:
            if silent:
                why = "ended with code 0 before its answers were complete; the same command resumes where it stopped"
                raise RunFailed(f"process {silent[0]} {why}") from None
            continue
        if isinstance(found, int):
            ended.add(found)
            continue
        if isinstance(found, str):
            raise RunFailed(f"{found}; the same command resumes where it stopped")
        number, answers = found
        return int(number), answers


def _process(rank: int, count: int, source: Source, options: InferConfig, todo: Any, done: Any) -> None:
    """The main function of a process: answer buckets until there are no more."""
    try:
        options = each.begin(rank, count, options)
        loaded = load([source], options, PlainConsole(quiet=True))
        while (bucket := todo.get()) is not None:
            done.put((bucket[0], answer_bucket(loaded, bucket, options)))
        done.put(rank)
    except Exception as error:
        done.put(each.failed(rank, error))
