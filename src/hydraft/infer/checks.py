"""What cannot be asked of a model, in a table like that of training. No torch."""

import re
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


def processes(cluster: str) -> int:
    """Processes of ``1xN``; 0 for anything else."""
    match = re.fullmatch(r"1x([1-9]\d?)", cluster)
    return int(match[1]) if match else 0


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
    (lambda o: o.mode is not InferMode.batch and o.cluster != "1x1", "cluster={o.cluster} is for mode=batch: leave it away"),
    (lambda o: o.cluster.startswith(tuple("23456789")), "cluster={o.cluster}: infer.py uses the processes of one machine: give cluster=1x2"),
    (lambda o: not processes(o.cluster), "cluster={o.cluster}: must be 1xN, one process a GPU"),
    (_batch(lambda o: o.input is None), "input: needs a value; give input=prompts.jsonl"),
    (_batch(lambda o: o.output is None), "output: needs a value; give output=answers.jsonl"),
    (_batch(lambda o: Path(str(o.output)).suffix != ".jsonl"), "output={o.output}: must end in .jsonl"),
    (_batch(lambda o: o.batch_size < 1), "batch_size={o.batch_size}: must be at least 1"),
    (_batch(lambda o: processes(o.cluster) > 1 and ":" in o.device), "device={o.device} is one card: leave it away with cluster={o.cluster}"),
    (_export(lambda o: o.output is None), "output: needs a value; give output=<a folder that does not exist yet>"),
    (_export(lambda o: o.quant not in (None, QuantKind.none) and o.export.kind is ExportKind.merged), "quant={o.quant.value}: what is exported is merged into unquantised weights; leave quant away"),
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
