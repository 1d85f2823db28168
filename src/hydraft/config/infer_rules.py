"""What cannot be asked of a model, in a table like that of training. No torch."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from hydraft.config.choices import ExportKind, InferMode, Layout, QuantKind
from hydraft.config.infer import InferConfig
from hydraft.config.serve import ServeConfig
from hydraft.errors import ConfigError
from hydraft.system.hardware import Hardware

Broken = Callable[[InferConfig], bool]


def _mode(mode: InferMode, broken: Broken) -> Broken:
    return lambda o: o.mode is mode and broken(o)


def _generate(broken: Broken) -> Broken:
    return _mode(InferMode.generate, broken)


def _batch(broken: Broken) -> Broken:
    return _mode(InferMode.batch, broken)


def _export(broken: Broken) -> Broken:
    return _mode(InferMode.export, broken)


def _serve(broken: Callable[[ServeConfig], bool]) -> Broken:
    return _mode(InferMode.serve, lambda o: broken(o.serve))


BROUGHT = ("system", "adapter", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
"""What each request says for itself in mode=serve."""


def _brought(options: InferConfig) -> bool:
    plain = InferConfig()
    return any(getattr(options, name) != getattr(plain, name) for name in BROUGHT)


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
    (lambda o: o.mode is not InferMode.serve and o.serve != ServeConfig(), "serve.… is for mode=serve, and this is mode={o.mode.value}"),
    (_mode(InferMode.serve, _brought), "mode=serve: each request brings its own system, model, temperature, top_p and seed: leave them away here"),
    (_mode(InferMode.serve, lambda o: o.max_new_tokens != InferConfig().max_new_tokens), "max_new_tokens={o.max_new_tokens}: in mode=serve the limit is serve.max_tokens"),
    (_serve(lambda s: not 0 <= s.port <= 65535), "serve.port={o.serve.port}: must be from 1 to 65535, or 0 for any that is free"),
    (_serve(lambda s: s.max_context is not None and s.max_context < 2), "serve.max_context={o.serve.max_context}: must be at least 2 tokens, or null for what the model allows"),
    (_serve(lambda s: s.max_tokens < 1), "serve.max_tokens={o.serve.max_tokens}: must be at least 1"),
    (_serve(lambda s: s.max_running < 1), "serve.max_running={o.serve.max_running}: must be at least 1"),
    (_serve(lambda s: s.max_waiting < 0), "serve.max_waiting={o.serve.max_waiting}: must be 0 or more"),
    (_serve(lambda s: s.max_body < 1000), "serve.max_body={o.serve.max_body}: must be at least 1000 bytes"),
    (_serve(lambda s: s.batch_tokens < s.max_running), "serve.batch_tokens={o.serve.batch_tokens}: must be at least serve.max_running={o.serve.max_running}, a token for each"),
    (_serve(lambda s: s.cache_tokens < 256), "serve.cache_tokens={o.serve.cache_tokens}: must be at least 256"),
    (_serve(lambda s: s.drain < 0), "serve.drain={o.serve.drain}: must be 0 seconds or more"),
]  # fmt: skip


def check(options: InferConfig) -> None:
    """Refuse what cannot be asked of a model, before anything is looked for.

    Raises:
        ConfigError: names the setting.
    """
    for broken, message in RULES:
        if broken(options):
            raise ConfigError(message.format(o=options))


def usable(options: InferConfig, machine: Hardware) -> None:
    """Refuse what torch could not do with the cards of ``machine``, before it is loaded.

    Raises:
        ConfigError: says what to install.
    """
    if options.device != "cpu" and machine.unusable:
        raise ConfigError(f"{machine.unusable}; without a card: device=cpu")
