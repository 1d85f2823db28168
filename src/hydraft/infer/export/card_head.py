"""The YAML head of a model card, by which the hub finds and shows a model: base, license, language, data sets and scores. No torch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hydraft.config import score
from hydraft.config.choices import ExportKind, Hub, Init
from hydraft.config.model import ModelConfig
from hydraft.config.schema import Config, load_config
from hydraft.data.sources import is_file
from hydraft.infer.export import portable
from hydraft.infer.source import Source
from hydraft.models import shapes
from hydraft.system import files
from hydraft.system.redaction import redact_text

KEPT = ("license", "license_name", "license_link", "language")
"""What a fine-tuned model takes from the card of its base."""

NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""A repository on the hub."""


def head(source: Source, kind: ExportKind, name: str, license: str | None) -> str:
    """The head, with its lines of ``---``.

    Args:
        source: what is exported.
        kind: what is written.
        name: of the model.
        license: ``export.license``; None for that of the base.
    """
    known = of_base(source)
    if license is not None:
        known = {key: value for key, value in known.items() if not key.startswith("license")} | {"license": license}
    config = None if source.run is None else load_config(source.run / "config.yaml")
    scores = {} if source.run is None else files.read_object(source.run / "result.json").get("after") or {}
    base = base_model(source)
    results = [] if config is None else _results(config, scores)
    data = ModelCardData(
        base_model=base,
        datasets=None if config is None else data_sets(config) or None,
        eval_results=results or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=name,
        library_name=None if kind is ExportKind.ollama else "peft" if kind is ExportKind.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["hydraft", *(["gguf"] if kind is ExportKind.ollama else [])],
    )
    for key, value in known.items():
        data[key] = value
    if base is not None:
        data["base_model_relation"] = "adapter" if kind is ExportKind.adapter else "finetune"
    if not results:
        data.pop("model_name")
    return f"---\n{data.to_yaml()}\n---"


def of_base(source: Source) -> dict[str, Any]:
    """What the card of the base says about its license and language; empty if it has none on this machine."""
    folder = None if _base(source).init is Init.random else shapes.folder_of(_base(source))
    try:
        text = "" if folder is None else (folder / "README.md").read_text(encoding="utf-8")
        data = vars(ModelCard(text, ignore_metadata_errors=True).data) if text.startswith("---") else {}
    except (OSError, ValueError, yaml.YAMLError):  # no README.md, not UTF-8, or a head that is no YAML object
        return {}
    return {key: data[key] for key in KEPT if _is_plain(data.get(key))}


def base_model(source: Source) -> str | None:
    """The base's name on the hub; None for a folder, random weights, or a model of another hub."""
    model = _base(source)
    if model.hub is not Hub.huggingface or model.init is Init.random:
        return None
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", model.path)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return model.path if NAME.fullmatch(model.path) and not Path(model.path).expanduser().exists() else None


def data_sets(config: Config) -> list[str]:
    """The names of the data sets on the hub that a run trained on."""
    named = [config.data.train, *(entry.rpartition("*")[0] or entry for entry in config.data.mix)]
    return list(dict.fromkeys(one.partition(":")[0] for one in named if not is_file(one) and NAME.match(one)))


def _results(config: Config, scores: dict[str, Any]) -> list[EvalResult]:
    """The held-out scores, and those of benchmarks, as the hub's ``model-index`` has them."""
    held_out = redact_text(portable.source(config.data.eval or "held-out records"))
    results = []
    for name, value in scores.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        _, of_benchmark, rest = name.rpartition(score.BENCHMARK)
        task, _, metric = rest.partition("/") if of_benchmark else (held_out, "", name)
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=task if of_benchmark else "held-out",
                dataset_name=task,
                metric_type=metric or "score",
                metric_value=round(value, 6),
            )
        )
    return results


def _base(source: Source) -> ModelConfig:
    return source.origin or source.model


def _is_plain(value: Any) -> bool:
    """Whether a value of a card is a short text, or a list of those, with nothing of this machine in it."""
    texts: Sequence[Any] = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(one, str) and len(one) <= 200 and portable.text(one) == one for one in texts)
