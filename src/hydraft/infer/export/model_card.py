"""The README.md of an exported folder: its head (``card_head.py``), what its run did (``card_run.py``) and commands. No torch."""

import json
import re
from pathlib import Path

from hydraft.config.choices import ExportKind
from hydraft.config.printed import override, shell_word
from hydraft.infer.export import card_head, card_run, combined_card, portable
from hydraft.infer.source import Kind, Source
from hydraft.models.families.registry import native_family
from hydraft.system import files, program
from hydraft.system.redaction import redact_text
from hydraft.system.version import __version__


def commands(source: Source, kind: ExportKind, target: Path, base: str) -> list[tuple[str, str]]:
    """Commands that use the folder: (description, command)."""
    folder, name, weights = shell_word(str(target)), shell_word(target.name), shell_word(base)
    if kind is ExportKind.ollama:
        model = ollama_name(target.name)
        return [
            ("make it a model of Ollama", f"ollama create {model} -f {shell_word(str(target / 'Modelfile'))}"),
            ("ask it", f"ollama run {model}"),
        ]
    if _own_class(base):
        return _own_commands(kind, target, base)
    if kind is ExportKind.merged:
        served = ("serve it", f"vllm serve {folder} --served-model-name {name}")
        if source.quantised:
            return [served]
        return [
            served,
            (
                "as GGUF, for Ollama and llama.cpp",
                f"{program.typed('infer')} mode=export export.kind=ollama run=… output=…",
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


def ollama_name(folder: str) -> str:
    """A name that Ollama accepts for a model."""
    return re.sub(r"[^a-z0-9._-]+", "-", folder.lower()).strip("-._") or "model"


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


def card(
    source: Source,
    kind: ExportKind,
    target: Path,
    base: str,
    differences: dict[str, float] | None,
    license: str | None = None,
) -> str:
    """The text of README.md, without secrets and without folders of this machine.

    Args:
        source: what is exported.
        kind: what is written.
        target: the folder.
        base: path or hub name of the native base.
        differences: ``merge.difference``; None without merged weights.
        license: ``export.license``.
    """
    name = " ".join(target.name.split())
    parts = [card_head.head(source, kind, name, license), f"# {name}", _what(source, kind, base)]
    if source.run is not None:
        parts += card_run.sections(source.run, source.folder.name)
    if source.combined is not None:
        parts.append(combined_card.section(source.combined))
    if differences is not None:
        parts.append("## Difference between merged and trained model\n\n" + describe_differences(differences))
    used = "\n".join(f"# {what}\n{command}" for what, command in commands(source, kind, Path(target.name), base))
    for folder in (base, str(source.folder)):
        used = used.replace(folder, Path(folder).name) if Path(folder).is_absolute() else used
    parts.append(redact_text(portable.text(f"## Use\n\n```bash\n{used}\n```")))
    return "\n\n".join(part for part in parts if part) + "\n"


def describe_differences(differences: dict[str, float]) -> str:
    """``merge.difference`` as a sentence."""
    return (
        f"logits of the merged and the trained model differ by at most {differences['logit_max']:.2g}, by {differences['logit_mean']:.2g} on average; "
        f"the same likeliest token at {differences['same_token']:.1%} of {differences['positions']:.0f} positions"
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
    return redact_text(portable.text(f"{name}, fine-tuned with hydraft {__version__}: {what}."))
