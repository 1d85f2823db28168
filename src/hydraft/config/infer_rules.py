"""Combinations of settings that infer.py refuses, as one table. No torch.

The bounds of a single setting are declared with it in the schema.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from hydraft.config import bounds
from hydraft.config.choices import ExportKind, InferMode, Layout, QuantKind
from hydraft.config.evaluate_rules import EVALUATE
from hydraft.config.export_rules import EXPORT
from hydraft.config.infer import InferConfig
from hydraft.config.serve import ServeConfig
from hydraft.config.verify import VerifyConfig
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


PER_REQUEST = ("system", "adapter", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
"""Settings that each request of mode=serve contains."""


def _is_per_request(options: InferConfig) -> bool:
    plain = InferConfig()
    return any(getattr(options, name) != getattr(plain, name) for name in PER_REQUEST)


def _is_broken(text: str | None) -> bool:
    """Whether a text has bytes that are not UTF-8, which Python reads from a command line as halves of surrogate pairs."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        return True
    return False


RULES: list[tuple[Broken, str]] = [
    (lambda o: _is_broken(o.prompt), "prompt: is not UTF-8 text"),
    (lambda o: _is_broken(o.system), "system: is not UTF-8 text"),
    (lambda o: o.temperature == 0 and o.top_p < 1, "top_p={o.top_p} is for sampling: give temperature=0.7 too"),
    (lambda o: o.temperature == 0 and o.top_k > 0, "top_k={o.top_k} is for sampling: give temperature=0.7 too"),
    (_generate(lambda o: o.prompt is None), "prompt: needs a value; give prompt=…"),
    (_generate(lambda o: not str(o.prompt).strip()), "prompt: is empty; give prompt=…"),
    (
        lambda o: o.mode is not InferMode.generate and o.prompt is not None,
        "prompt={o.prompt} is for mode=generate, and this is mode={o.mode.value}: leave it out",
    ),
    (
        lambda o: o.mode not in (InferMode.batch, InferMode.verify) and o.input is not None,
        "input={o.input} is for mode=batch and mode=verify: give one of them too",
    ),
    (
        lambda o: o.mode not in (InferMode.batch, InferMode.export, InferMode.evaluate) and o.output is not None,
        "output={o.output} is for mode=batch, mode=export and mode=evaluate, and this is mode={o.mode.value}",
    ),
    (
        lambda o: o.mode is not InferMode.batch and o.cluster.ranks_per_node > 1,
        "cluster.ranks_per_node={o.cluster.ranks_per_node}: several processes are for mode=batch: leave it out",
    ),
    (_batch(lambda o: o.input is None), "input: needs a value; give input=prompts.jsonl"),
    (_batch(lambda o: o.output is None), "output: needs a value; give output=answers.jsonl"),
    (_batch(lambda o: Path(str(o.output)).suffix != ".jsonl"), "output={o.output}: must end in .jsonl"),
    (
        _batch(lambda o: o.cluster.ranks_per_node > 1 and ":" in o.device),
        "device={o.device} is one GPU: leave it out with several processes",
    ),
    (
        _mode(InferMode.chat, lambda o: not sys.stdin.isatty()),
        "mode=chat: needs a terminal; in a script use mode=generate or mode=batch",
    ),
    (_export(lambda o: o.output is None), "output: needs a value; give output=<a folder that does not exist yet>"),
    (
        _export(lambda o: o.quant.kind not in (None, QuantKind.none) and o.export.kind is ExportKind.merged),
        "quant={o.quant.kind.value}: adapters are merged into unquantised weights: leave quant out",
    ),
    (
        _export(lambda o: o.export.layout is Layout.published and o.export.kind is ExportKind.adapter),
        "export.layout=published is for whole models: use export.kind=merged",
    ),
    (
        lambda o: o.mode is not InferMode.serve and o.serve != ServeConfig(),
        "serve.… is for mode=serve, and this is mode={o.mode.value}",
    ),
    (
        lambda o: o.mode is not InferMode.verify and o.against is not None,
        "against={o.against} is for mode=verify: give mode=verify too",
    ),
    (
        lambda o: o.mode is not InferMode.verify and o.verify != VerifyConfig(),
        "verify.… is for mode=verify, and this is mode={o.mode.value}",
    ),
    (
        _mode(InferMode.verify, lambda o: o.against is None),
        "against: needs a value; give against=http://127.0.0.1:8000, the address of a server",
    ),
    (
        _mode(InferMode.verify, lambda o: o.temperature > 0 or o.repetition_penalty != 1),
        "mode=verify: compares greedy answers: leave temperature and repetition_penalty out",
    ),
    (
        _mode(InferMode.verify, lambda o: o.system is not None and o.input is None),
        "system={o.system}: the held-out records have their own: leave it out, or give input=prompts.jsonl",
    ),
    (
        _mode(InferMode.serve, _is_per_request),
        "mode=serve: each request has its own system, model, temperature, top_p and seed: leave them out here",
    ),
    (
        _mode(InferMode.serve, lambda o: o.max_new_tokens != InferConfig().max_new_tokens),
        "max_new_tokens={o.max_new_tokens}: in mode=serve the limit is serve.max_tokens",
    ),
    (
        _serve(lambda s: s.batch_tokens < s.max_running),
        "serve.batch_tokens={o.serve.batch_tokens}: must be at least serve.max_running={o.serve.max_running}, a token for each",
    ),
]


RULES += [*EVALUATE, *EXPORT]


def check(options: InferConfig) -> None:
    """Refuse options that cannot be used, before any file is read.

    Raises:
        ConfigError: names the setting.
    """
    bounds.check(options)
    for broken, message in RULES:
        if broken(options):
            raise ConfigError(message.format(o=options))


def usable(options: InferConfig, machine: Hardware) -> None:
    """Refuse a machine whose GPUs the installed torch cannot use, before torch is imported.

    Raises:
        ConfigError: names what to install.
    """
    if options.device != "cpu" and machine.unusable:
        raise ConfigError(f"{machine.unusable}; without a card: device=cpu")
