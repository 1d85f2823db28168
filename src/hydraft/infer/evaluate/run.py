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
from hydraft.system import files
from hydraft.system.console import Screen

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
    with Screen(os.dup(1), visible=True) as screen:
        for note in found.notes:
            screen.say(note)
        screen.phase("loading the model")
        before, after = _scores(source, options, found, screen)
        screen.progress.stop()
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


def _scores(
    source: Source, options: InferConfig, found: tasks.Tasks, screen: Screen
) -> tuple[list[Score] | None, list[Score]]:
    """The scores of the base, if they are wanted, and of the source."""
    import peft

    from hydraft.evaluation.benchmarks.harness import Harness
    from hydraft.evaluation.benchmarks.run import evaluate
    from hydraft.infer.load import load

    loaded = load([source], options, screen.console)
    tokenizer = loaded.select().tokenizer
    if options.benchmark_chat and not tokenizer.chat_template:
        raise ConfigError("benchmark_chat=true: the tokenizer has no chat template: leave it out")

    def measured(what: str) -> list[Score]:
        screen.phase(f"evaluating {what}")
        model = Harness(loaded.model, tokenizer, loaded.device, lambda *_: options.batch_size, lambda _: None)
        return evaluate(found, model)

    before = None
    if options.before:
        assert isinstance(loaded.model, peft.PeftModel)
        with loaded.model.disable_adapter():
            before = measured("the base")
    return before, measured(source.name)


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
