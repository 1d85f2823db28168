"""What cannot be asked of a model, in a table like that of training. No torch."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from hydraft.choices import ExportKind, InferMode, Layout, QuantKind
from hydraft.config import ConfigError
from hydraft.infer.config import InferConfig

Broken = Callable[[InferConfig], bool]


def _mode(mode: InferMode, broken: Broken) -> Broken:
    return lambda o: o.mode is mode and broken(o)


def _generate(broken: Broken) -> Broken:
    return _mode(InferMode.generate, broken)


def _batch(broken: Broken) -> Broken:
    return _mode(InferMode.batch, broken)


def _export(broken: Broken) -> Broken:
    return _mode(InferMode.export, broken)


RULES: list[tuple[Broken, str]] = [
    (lambda o: o.max_new_tokens < 1, "max_new_tokens={o.max_new_tokens}: must be at least 1"),
    (lambda o: o.temperature < 0, "temperature={o.temperature}: must be 0 (greedy) or more"),
    (lambda o: not 0 < o.top_p <= 1, "top_p={o.top_p}: must be in (0, 1]"),
    (lambda o: o.top_k < 0, "top_k={o.top_k}: must be 0 (all tokens) or more"),
    (lambda o: o.repetition_penalty < 1, "repetition_penalty={o.repetition_penalty}: must be 1 (none) or more"),
    (lambda o: o.temperature == 0 and o.top_p < 1, "top_p={o.top_p} is about sampling: give temperature=0.7 too"),
    (lambda o: o.temperature == 0 and o.top_k > 0, "top_k={o.top_k} is about sampling: give temperature=0.7 too"),
    (lambda o: o.seed < 0, "seed={o.seed}: a seed is 0 or more"),
    (lambda o: not re.fullmatch(r"auto|cpu|cuda(:\d+)?", o.device), "device={o.device}: must be auto, cpu, cuda or, for the second card, cuda:1"),
    (lambda o: o.template not in (None, "chat") and "{instruction}" not in str(o.template), "template={o.template!r}: must be chat or a prompt that contains {{instruction}}"),
    (_generate(lambda o: o.prompt is None), "prompt: needs a value; give prompt=…"),
    (_generate(lambda o: not str(o.prompt).strip()), "prompt: is empty; give prompt=…"),
    (lambda o: o.mode is not InferMode.generate and o.prompt is not None, "prompt={o.prompt} is for mode=generate, and this is mode={o.mode.value}: leave it away"),
    (lambda o: o.mode is not InferMode.batch and o.input is not None, "input={o.input} is for mode=batch: give mode=batch too"),
    (lambda o: o.mode not in (InferMode.batch, InferMode.export) and o.output is not None, "output={o.output} is for mode=batch and mode=export, and this is mode={o.mode.value}"),
    (lambda o: o.cluster.nodes != 1, "cluster.nodes={o.cluster.nodes}: infer.py uses one machine: use cluster=1x2, or the like"),
    (lambda o: o.cluster.ranks_per_node < 1, "cluster.ranks_per_node={o.cluster.ranks_per_node}: must be at least 1"),
    (lambda o: o.mode is not InferMode.batch and o.cluster.ranks_per_node > 1, "cluster.ranks_per_node={o.cluster.ranks_per_node}: several processes are for mode=batch: leave it away"),
    (_batch(lambda o: o.input is None), "input: needs a value; give input=prompts.jsonl"),
    (_batch(lambda o: o.output is None), "output: needs a value; give output=answers.jsonl"),
    (_batch(lambda o: Path(str(o.output)).suffix != ".jsonl"), "output={o.output}: must end in .jsonl"),
    (_batch(lambda o: o.batch_size < 1), "batch_size={o.batch_size}: must be at least 1"),
    (_batch(lambda o: o.cluster.ranks_per_node > 1 and ":" in o.device), "device={o.device} is one card: leave it away with several processes"),
    (_mode(InferMode.chat, lambda o: not sys.stdin.isatty()), "mode=chat: talks with a person at a terminal; for a script use mode=generate or mode=batch"),
    (_export(lambda o: o.output is None), "output: needs a value; give output=<a folder that does not exist yet>"),
    (_export(lambda o: o.quant.kind not in (None, QuantKind.none) and o.export.kind is ExportKind.merged), "quant={o.quant.kind.value}: what is exported is merged into unquantised weights; leave quant away"),
    (_export(lambda o: o.export.layout is Layout.published and o.export.kind is ExportKind.adapter), "export.layout=published is for whole models: use export.kind=merged"),
]  # fmt: skip


def check(options: InferConfig) -> None:
    """Refuse what cannot be asked of a model, before anything is looked for.

    Raises:
        ConfigError: names the setting.
    """
    for broken, message in RULES:
        if broken(options):
            raise ConfigError(message.format(o=options))
