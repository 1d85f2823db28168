"""Rules about benchmarks before and after training. No torch."""

from importlib.util import find_spec

from hydraft.config.choices import Keep, Kernels
from hydraft.config.rule import value
from hydraft.config.schema import Config
from hydraft.config.score import BENCHMARK
from hydraft.system import program

MISSING = f"data.benchmark={{c.data.benchmark}} needs a package that is not installed: {program.install('benchmark')}, or use data.benchmark=[]"


def _compared(config: Config) -> bool:
    return any(name.startswith(BENCHMARK) for name in config.sweep.objective)


def _has_options(config: Config) -> bool:
    data = config.data
    return (data.benchmark_shots, data.benchmark_limit) != (None, None) or data.benchmark_chat


BENCHMARKS = [
    value(
        lambda c: bool(c.data.benchmark) and find_spec("lm_eval") is None,
        MISSING,
        here=True,
    ),
    value(
        lambda c: not c.data.benchmark and _has_options(c),
        "data.benchmark_shots, _limit and _chat are about benchmarks, and there is none: give data.benchmark=cmmlu, or leave them out",
    ),
    value(
        lambda c: not c.data.benchmark and _compared(c),
        "sweep.objective={c.sweep.objective} is the score of a benchmark, and none is run: give data.benchmark=…",
    ),
    # The weights in memory after training are those of the last step.
    value(
        lambda c: bool(c.data.benchmark) and c.train.keep is Keep.best,
        "data.benchmark with train.keep=best: benchmarks are run on the weights of the last step, and others are kept: use train.keep=last, or run python infer.py mode=evaluate on the result",
    ),
    value(
        lambda c: bool(c.data.benchmark) and c.kernels.kind is Kernels.unsloth,
        "data.benchmark needs logits, which kernels=unsloth does not return: use kernels=torch, or run python infer.py mode=evaluate on the result",
    ),
]
