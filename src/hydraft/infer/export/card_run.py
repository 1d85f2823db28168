"""What a run did, for the card of its model: data, config, scores, benchmarks, plan and its own command. No torch."""

import json
import re
from pathlib import Path
from typing import Any

from hydraft.config.choices import Rope
from hydraft.config.lora import LoraMethod, start_name
from hydraft.config.objective import ObjectiveKind
from hydraft.config.optimizer import OptimizerKind
from hydraft.config.schema import Config, load_config
from hydraft.evaluation.benchmarks import scores as benchmarks
from hydraft.infer.export import portable
from hydraft.models.shapes import planned_config
from hydraft.sweep.results.command import of_job
from hydraft.sweep.results.ledger import Ledger
from hydraft.system import files, program
from hydraft.system.redaction import redact_command, redact_text


def sections(run: Path, weights: str) -> list[str]:
    """The sections of the card; one without content is empty.

    Args:
        run: the run's folder.
        weights: the name of the folder of its weights, by which ``benchmarks.json`` knows them.
    """
    config = load_config(run / "config.yaml")
    parts = [_data(config), _config(config), _scores(run), _benchmarks(run, weights), _plan(run)]
    return [*(redact_text(portable.text(part)) for part in parts), command(run)]


def _data(config: Config) -> str:
    data = config.data
    rows = [
        f"trained on {_code(portable.source(data.train))}",
        *(f"mixed with {_code(portable.source(entry))}" for entry in data.mix),
    ]
    if data.only:
        rows.append(f"only the tasks {', '.join(data.only)}")
    if data.eval:
        rows.append(f"evaluated on {_code(portable.source(data.eval))}")
    rows.append(
        f"at most {data.max_length} tokens per record, formatted with "
        + ("the model's chat template" if data.template == "chat" else _code(repr(data.template)))
    )
    return "## Data\n\n" + "\n".join(f"- {row}" for row in rows)


def _code(text: str) -> str:
    """Inline code in Markdown, for any text."""
    line = " ".join(text.splitlines())
    ticks = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if "`" in line else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def _config(config: Config) -> str:
    lora, train = config.lora, config.train
    method = (
        "all weights"
        if lora.method is LoraMethod.none
        else f"{lora.method.value}, r {lora.r}, alpha {lora.alpha:g}, on {lora.targets if isinstance(lora.targets, str) else ', '.join(lora.targets)}"
    )
    preference = config.objective.kind is not ObjectiveKind.sft
    rows = [
        ("trained", method),
        *([("objective", config.objective.described)] if preference else []),
        *([("started from", start_name(lora.start))] if lora.start else []),
        *([("rotary positions", _rope(config))] if config.model.rope is not Rope.none else []),
        ("base weights", config.quant.kind.value if config.quant.kind.value != "none" else "unquantised"),
        *([("optimizer", config.optimizer.kind.value)] if config.optimizer.kind is not OptimizerKind.adamw else []),
        ("learning rate", f"{train.learning_rate:g}, {train.scheduler.value}"),
        ("global batch", f"{config.global_batch_size} records"),
        ("length", f"{train.max_steps} steps" if train.max_steps else f"{train.epochs:g} epochs"),
        ("precision", train.precision.value),
        ("ranks", f"{config.world_size}, ZeRO-{config.zero.stage}"),
        ("seed", str(config.seed)),
    ]
    return "## Config\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)


def _rope(config: Config) -> str:
    """What a base needs that is loaded without hydraft: an adapter's own files have no place for it."""
    native = planned_config(config.model) or {}
    wanted = {name: native[name] for name in ("rope_parameters", "max_position_embeddings") if name in native}
    return f"scaled ({config.model.rope.value}, {config.model.rope_factor:g} times); config.json of the model: `{json.dumps(wanted)}`"


def _cell(text: str) -> str:
    """Text in a table of Markdown."""
    return " ".join(text.replace("|", "\\|").split())


def _scores(run: Path) -> str:
    result = files.read_object(run / "result.json")
    before, after = result.get("before") or {}, result.get("after") or {}
    rows = [
        f"| {name.replace('_', ' ')} | {_number(before.get(name))} | {_number(value)} |"
        for name, value in after.items()
    ]
    if not rows:
        return ""
    kept, early = result.get("kept"), result.get("ended_early")
    notes = [f"The weights are those of step {kept['step']:,}, the best evaluation."] if kept else []
    notes += [f"The training ended early, at step {early['step']:,} of {early['of']:,}."] if early else []
    below = f"\n\n{' '.join(notes)}" if notes else ""
    return "## Scores\n\n| held-out | before | after |\n|---|---|---|\n" + "\n".join(rows) + below


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"


def _plan(run: Path) -> str:
    plan = files.read_object(run / "plan.json")
    rows = [
        f"- {name.replace('_', ' ')}: {value:,}"
        for name, value in plan.items()
        if isinstance(value, int) and not isinstance(value, bool)
    ]
    return "## Plan\n\n" + "\n".join(rows) if rows else ""


def _benchmarks(run: Path, weights: str) -> str:
    """The scores that ``mode=evaluate`` has added to the run's folder."""
    found = files.read_object(run / benchmarks.FILE).get(weights)
    rows = []
    for task, entry in found.items() if isinstance(found, dict) else ():
        before, after = entry.get("before") or {}, entry.get("after") or {}
        rows += [
            f"| {_cell(task)} | {_cell(metric.removesuffix(',none'))} | {_number(before.get(metric))} | {_number(value)} |"
            for metric, value in after.items()
        ]
    if not rows:
        return ""
    return "## Benchmarks\n\n| benchmark | metric | before | after |\n|---|---|---|---|\n" + "\n".join(rows)


def command(run: Path) -> str:
    """The command that trains this run alone, also if it was a job of a sweep; without secrets and this machine's folders."""
    environment = files.read_object(run / "environment.json")
    recorded = [str(word) for word in environment.get("command") or []]
    if not recorded:
        return ""
    overrides = [word for word in redact_command(_overrides(run, recorded)) if not word.startswith("hydra.")]
    hydraft = Path(recorded[0]).name == "hydraft" or recorded[1:3] == ["-m", "hydraft"]
    typed = " ".join(["hydraft train" if hydraft else "python train.py", portable.line(overrides)]).rstrip()
    versions = ", ".join(
        f"{name} {version}" for name, version in (environment.get("packages") or {}).items() if version
    )
    return f"## Command\n\n```bash\n{typed}\n```\n\n{versions}"


def _overrides(run: Path, recorded: list[str]) -> list[str]:
    """The overrides of a run's own command: those of its job in the ledger, if it is one of a sweep."""
    try:
        jobs = Ledger(run.parent).jobs().values()
        return list(next(job.overrides for job in jobs if job.name == run.name))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        StopIteration,
    ):  # no ledger, a damaged one, or not one of its jobs
        arguments = program.arguments(recorded)
        return of_job(arguments, run.name) if {"-m", "--multirun"} & {*arguments} else arguments
