"""Combinations of settings that ``mode=evaluate`` of infer.py refuses. No torch."""

from collections.abc import Callable
from pathlib import Path

from hydraft.config.choices import InferMode, Thinking
from hydraft.config.infer import InferConfig

OWN = ("system", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_new_tokens", "template")
"""Settings that each task of a benchmark decides itself."""


def _evaluates(broken: Callable[[InferConfig], bool]) -> Callable[[InferConfig], bool]:
    return lambda o: o.mode is InferMode.evaluate and broken(o)


def _has_own(options: InferConfig) -> bool:
    plain = InferConfig()
    return options.thinking is not Thinking.auto or any(getattr(options, name) != getattr(plain, name) for name in OWN)


def _asks(options: InferConfig) -> bool:
    given = (options.benchmark_shots, options.benchmark_limit)
    return bool(options.benchmark) or given != (None, None) or options.benchmark_chat or options.before


EVALUATE: list[tuple[Callable[[InferConfig], bool], str]] = [
    (
        lambda o: o.mode is not InferMode.evaluate and _asks(o),
        "benchmark…=… and before=true are for mode=evaluate, and this is mode={o.mode.value}: leave them out",
    ),
    (
        _evaluates(lambda o: not any(name.strip() for name in o.benchmark)),
        "benchmark: needs a value; give benchmark=cmmlu, benchmark=zh_general, or a task file: benchmark=mine.yaml",
    ),
    (
        _evaluates(_has_own),
        "mode=evaluate: each task has its own prompts and decoding: leave system, template, thinking, max_new_tokens, seed and sampling out",
    ),
    (
        _evaluates(lambda o: o.output is not None and Path(o.output).suffix != ".json"),
        "output={o.output}: must end in .json",
    ),
]
