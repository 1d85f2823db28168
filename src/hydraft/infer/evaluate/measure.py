"""The scores of a loaded model and of its base: in this process, or in one process for each GPU, which share out the questions."""

import multiprocessing
import os
import queue
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError, RunFailed
from hydraft.evaluation.benchmarks import tasks
from hydraft.evaluation.benchmarks.harness import Harness
from hydraft.evaluation.benchmarks.run import evaluate
from hydraft.evaluation.benchmarks.scores import Score
from hydraft.infer import processes as each
from hydraft.infer.load import load
from hydraft.infer.source import Source
from hydraft.launch.local import elastic, interface
from hydraft.system.console import Screen
from hydraft.system.hardware import detect

Measured = tuple[list[Score] | None, list[Score]]
"""The scores of the base, if they are wanted, and of the source."""


@dataclass(frozen=True)
class Shared:
    """What several processes evaluate together."""

    source: Source
    options: InferConfig
    requested: tasks.Requested
    store: str
    """The file where they find each other."""

    @property
    def count(self) -> int:
        """The processes."""
        return self.options.cluster.ranks_per_node


def here(source: Source, options: InferConfig, found: tasks.Tasks, screen: Screen) -> Measured:
    """The scores, by all processes of the group that this one is in, or by this one alone. Every process must call it.

    Raises:
        ConfigError: prompts are to be formatted as a chat, and the tokenizer has no chat template.
    """
    screen.phase("loading the model")
    loaded = load([source], options, screen.console)
    tokenizer: Any = loaded.select().tokenizer
    model: Any = loaded.model
    if options.benchmark_chat and not tokenizer.chat_template:
        raise ConfigError("benchmark_chat=true: the tokenizer has no chat template: leave it out")

    def measured(what: str) -> list[Score]:
        screen.phase(f"evaluating {what}")
        harness = Harness(
            model,
            tokenizer,
            loaded.device,
            lambda *_: options.batch_size,
            screen.advance,
            lambda requests: screen.phase(f"evaluating {what}", requests),
        )
        return evaluate(found, harness)

    before = None
    if options.before:
        with model.disable_adapter():
            before = measured("the base")
    return before, measured(source.name)


def in_processes(source: Source, options: InferConfig, requested: tasks.Requested) -> Measured:
    """The scores, by several processes of this machine. The first of them writes to this one's terminal.

    Raises:
        ConfigError: as in ``here``.
        RunFailed: a process ended before its work was done.
    """
    context: Any = multiprocessing.get_context(elastic.start_method(detect()))
    done = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        work = Shared(source, options, requested, str(Path(folder) / "store"))
        processes = [
            context.Process(target=_process, args=(rank, work, done), daemon=True) for rank in range(work.count)
        ]
        for process in processes:
            process.start()
        try:
            answer = _wait(done, processes)
            if isinstance(answer, Exception):
                raise answer
            for process in processes:
                process.join()
            return answer
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _wait(done: Any, processes: list[Any]) -> Measured | Exception:
    """What the first process has measured, or the first error.

    Raises:
        RunFailed: a process has ended without saying why.
    """
    while True:
        ended = [(rank, process.exitcode) for rank, process in enumerate(processes) if process.exitcode is not None]
        try:
            found: Measured | Exception = done.get(timeout=0.5)
            return found
        except queue.Empty:
            for rank, code in ended:
                if code != 0 or rank == 0:
                    raise RunFailed(f"process {rank} {each.ended(code)} before the scores were complete") from None


def _process(rank: int, work: Shared, done: Any) -> None:
    """The main function of a process of several."""
    try:
        options = each.begin(rank, work.count, work.options)
        if options.device.startswith("cuda:"):
            torch.cuda.set_device(options.device)
        os.environ.update(interface.environment())
        store = dist.FileStore(work.store, work.count)  # type: ignore[attr-defined]
        # What is exchanged are answers, as bytes in main memory: gloo serves beside GPUs too.
        dist.init_process_group("gloo", store=store, rank=rank, world_size=work.count)
        with Screen(os.dup(1), visible=rank == 0) as screen:
            measured = here(work.source, options, tasks.load(work.requested), screen)
        dist.barrier()
        if rank == 0:
            done.put(measured)
        dist.destroy_process_group()
    except ConfigError as error:
        done.put(error)
    except Exception as error:
        done.put(RunFailed(each.failed(rank, error)))
