"""The README.md of an exported folder: training data, config, scores and commands. No torch."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from hydraft.config.choices import ExportKind
from hydraft.config.lora import LoraMethod, start_name
from hydraft.config.objective import ObjectiveKind
from hydraft.config.printed import override, shell_word
from hydraft.config.schema import Config, load_config
from hydraft.infer.export import combined_card
from hydraft.infer.source import Kind, Source
from hydraft.models.families.registry import native_family
from hydraft.system import files, program
from hydraft.system.redaction import redact_command, redact_text
from hydraft.system.version import __version__


def commands(source: Source, kind: ExportKind, target: Path, base: str) -> list[tuple[str, str]]:
    """Commands that use the folder: (description, command)."""
    folder, name, weights = shell_word(str(target)), shell_word(target.name), shell_word(base)
    if _own_class(base):
        return _own_commands(kind, target, base)
    if kind is ExportKind.merged:
        served = ("serve it", f"vllm serve {folder} --served-model-name {name}")
        if source.quantised:
            return [served]
        return [
            served,
            (
                "as GGUF, by llama.cpp's converter",
                f"python convert_hf_to_gguf.py {folder} --outfile {shell_word(f'{target.name}.gguf')}",
            ),
        ]
    settings = json.loads((source.folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank = next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= int(settings.get("r", 8))), 512)
    if settings.get("use_dora"):
        return [
            (
                "vLLM does not support DoRA adapters; export a merged model",
                f"{program.typed('infer')} mode=export {override('run', source.folder)} output=…",
            )
        ]
    return [
        (
            "serve it over its base",
            f"vllm serve {weights} --enable-lora --max-lora-rank {rank} --lora-modules {shell_word(f'{target.name}={target}')}",
        )
    ]


def _own_class(base: str) -> bool:
    """Whether the model class is ours and comes with the weights (``models/architectures``): other programs do not have it."""
    family = native_family(str(files.read_object(Path(base) / "config.json").get("model_type")))
    return family is not None and family.alibi


def _own_commands(kind: ExportKind, target: Path, base: str) -> list[tuple[str, str]]:
    if kind is ExportKind.adapter:
        used = f"{override('run', target)} {override('base', base)}"
        return [("answer a file of prompts", f"{program.typed('infer')} mode=batch {used} input=… output=…")]
    load = f"AutoModelForCausalLM.from_pretrained({str(target)!r}, trust_remote_code=True)"
    code = shell_word(f"from transformers import AutoModelForCausalLM; {load}")
    return [
        ("load it: its class is in the folder", f"python -c {code}"),
        ("answer a file of prompts", f"{program.typed('infer')} mode=batch {override('run', target)} input=… output=…"),
        (
            "for vLLM, which has this architecture in its published layout",
            f"{program.typed('infer')} mode=export export.layout=published run=… output=…",
        ),
    ]


def card(source: Source, kind: ExportKind, target: Path, base: str, differences: dict[str, float] | None) -> str:
    """The text of README.md; ``differences`` is that of ``merge.difference``."""
    parts = [_head(kind, base), f"# {' '.join(target.name.split())}", _what(source, kind, base)]
    if source.run is not None:
        config = load_config(source.run / "config.yaml")
        parts += [_data(config), _config(config), _scores(source.run), _plan(source.run), _command(source.run)]
    if source.combined is not None:
        parts.append(combined_card.section(source.combined))
    if differences is not None:
        parts.append("## Difference between merged and trained model\n\n" + describe_differences(differences))
    used = "\n".join(f"# {what}\n{command}" for what, command in commands(source, kind, Path(target.name), base))
    parts.append(f"## Use\n\n```bash\n{used}\n```")
    return redact_text("\n\n".join(part for part in parts if part) + "\n")


def describe_differences(differences: dict[str, float]) -> str:
    """``merge.difference`` as a sentence."""
    return (
        f"logits of the merged and the trained model differ by at most {differences['logit_max']:.2g}, by {differences['logit_mean']:.2g} on average; "
        f"the same likeliest token at {differences['same_token']:.1%} of {differences['positions']:.0f} positions"
    )


def _head(kind: ExportKind, base: str) -> str:
    library = "peft" if kind is ExportKind.adapter else "transformers"
    named = [f"base_model: {json.dumps(base)}"] if not Path(base).is_absolute() else []
    return "\n".join(
        ["---", f"library_name: {library}", "pipeline_tag: text-generation", *named, "tags: [hydraft]", "---"]
    )


def _what(source: Source, kind: ExportKind, base: str) -> str:
    name = source.base_name or Path(base).name
    what = (
        "the adapter"
        if kind is ExportKind.adapter
        else "the model with the adapter merged"
        if source.kind is Kind.adapter
        else "the whole model"
    )
    return f"{name}, fine-tuned with hydraft {__version__}: {what}."


def _data(config: Config) -> str:
    data = config.data
    rows = [f"trained on {_code(_short(data.train))}", *(f"mixed with {_code(_short(entry))}" for entry in data.mix)]
    if data.only:
        rows.append(f"only the tasks {', '.join(data.only)}")
    if data.eval:
        rows.append(f"evaluated on {_code(_short(data.eval))}")
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


def _short(path: str) -> str:
    """The file name of an absolute path, without this machine's folders; a hub name unchanged."""
    return Path(path).name if Path(path).is_absolute() else path


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
        ("base weights", config.quant.kind.value if config.quant.kind.value != "none" else "unquantised"),
        ("learning rate", f"{train.learning_rate:g}, {train.scheduler.value}"),
        ("global batch", f"{config.global_batch_size} records"),
        ("length", f"{train.max_steps} steps" if train.max_steps else f"{train.epochs:g} epochs"),
        ("precision", train.precision.value),
        ("ranks", f"{config.world_size}, ZeRO-{config.zero.stage}"),
        ("seed", str(config.seed)),
    ]
    return "## Config\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


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


def _command(run: Path) -> str:
    environment = files.read_object(run / "environment.json")
    words = [str(word) for word in environment.get("command") or []]
    if not words:
        return ""
    shown = [_without_folders(word) for word in redact_command(words[1:]) if not word.startswith("hydra.")]
    typed = shlex.join([Path(words[0]).name, *shown])
    versions = ", ".join(
        f"{name} {version}" for name, version in (environment.get("packages") or {}).items() if version
    )
    return f"## Command\n\n```bash\npython {typed}\n```\n\n{versions}"


def _without_folders(word: str) -> str:
    """An override of a command, with the name of the run for the path of one in ``lora.start``."""
    key, _, value = word.partition("=")
    return f"{key}={start_name(value)}" if key == "lora.start" and Path(value).is_absolute() else word
