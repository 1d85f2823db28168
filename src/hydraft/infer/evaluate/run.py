"""``mode=evaluate``: benchmarks of lm-evaluation-harness on a trained model, and on its base. No torch at module level.

The tasks and their data sets are read before the model is loaded. The scores are printed, and written to the run's folder.
"""

import os
from pathlib import Path
from typing import Any

from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.evaluation.benchmarks import scores, tasks
from hydraft.evaluation.benchmarks.scores import Score
from hydraft.infer.source import Kind, Source
from hydraft.system import files, wrapping
from hydraft.system.console import Screen
from hydraft.system.imports import import_large

HEAD = ["benchmark", "metric", "base", "score", "questions"]


def run(sources: list[Source], options: InferConfig) -> None:
    """Run ``benchmark`` and print and write the scores.

    Raises:
        ConfigError: there is no such task, or its data set is not available.
    """
    source = next(one for one in sources if options.adapter in (None, one.name))
    if options.before:
        _check_base(source)
    requested = tasks.Requested(
        options.benchmark,
        options.benchmark_shots,
        options.benchmark_limit,
        options.benchmark_chat,
        options.trust_remote_code,
    )
    found = tasks.load(requested)
    for note in found.notes:
        wrapping.say(note)
    before, after = _measured(source, options, found)
    with Screen(os.dup(1), visible=True) as screen:
        screen.table(str(source.run or source.folder), HEAD, scores.rows(before, after))
        _write(source, options, before, after, screen)


def _check_base(source: Source) -> None:
    """Refuse ``before=true`` where the loaded base is not the model before training.

    Raises:
        ConfigError: names what to evaluate instead.
    """
    if source.kind is Kind.model:
        raise ConfigError(
            "before=true: this is a whole model without an adapter: evaluate its base with run=<the base's folder>"
        )
    bias = files.read_object(source.folder / "adapter_config.json").get("bias", "none")
    if bias != "none":
        raise ConfigError(
            f"before=true: the adapter changes biases of the base (lora.bias={bias}): evaluate the base with run=<its folder>"
        )


def _measured(source: Source, options: InferConfig, found: tasks.Tasks) -> tuple[list[Score] | None, list[Score]]:
    """The scores of the base, if they are wanted, and of the source."""
    measure: Any = import_large("hydraft.infer.evaluate.measure")  # imports torch
    if options.cluster.ranks_per_node > 1:
        shared: tuple[list[Score] | None, list[Score]] = measure.in_processes(source, options, found.requested)
        return shared
    with Screen(os.dup(1), visible=True) as screen:
        own: tuple[list[Score] | None, list[Score]] = measure.here(source, options, found, screen)
        return own


def _write(
    source: Source, options: InferConfig, before: list[Score] | None, after: list[Score], screen: Screen
) -> None:
    about: dict[str, Any] = {
        "shots": options.benchmark_shots,
        "limit": options.benchmark_limit,
        "chat": options.benchmark_chat,
        "quant": source.quant.kind.value,
        "precision": source.precision.value,
        "packages": {name: files.version_of(name) for name in ("lm_eval", "torch", "transformers", "peft")},
    }
    weights = source.folder.name
    if source.run is not None:
        scores.write(source.run, weights, before, after, about)
        screen.say(f"written to {source.run / scores.FILE}")
    if options.output is not None:
        target = Path(options.output).expanduser()
        scores.write(target.parent, weights, before, after, about, target.name)
        screen.say(f"written to {target}")
    if source.run is None and options.output is None:
        screen.say(f"{source.folder} is not in a run's folder: nothing is written; give output=scores.json")
