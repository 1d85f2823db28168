"""Writes an export: weights, tokenizer, chat template, generation config and model card, in a staging folder that is renamed at the end."""

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hydraft.config.choices import ExportKind, Layout, Precision
from hydraft.config.infer import InferConfig
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.data.records import ask
from hydraft.data.rendering import begin
from hydraft.data.template_default import with_default
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError, RunFailed
from hydraft.infer.export import merge
from hydraft.infer.export.chat_template import jinja
from hydraft.infer.export.model_card import card, commands, describe_differences
from hydraft.infer.export.published_layout import publish
from hydraft.infer.export.published_source import published_source
from hydraft.infer.load import LoadedSource, load, own_precision
from hydraft.infer.resolve import ADAPTER_CONFIG
from hydraft.infer.source import ADAPTER, Source
from hydraft.models import base_identity, fp32_weights, prepare
from hydraft.models.generation import end_ids
from hydraft.models.load import load_base
from hydraft.models.quant import DTYPES
from hydraft.system import files
from hydraft.system.plain_console import PlainConsole

SMALL_FILES = 64 << 20
"""Bytes that are reserved for tokenizer, config and model card."""
PROMPTS = (
    "判断这条评论的情感，只回答正面或负面。\n房间很干净，服务也很热情。",
    "用一句话介绍你自己。",
    "What is the capital of France?",
)
"""Prompts on which both models are compared, besides the run's probe."""


def write(source: Source, options: InferConfig, target: Path) -> None:
    """Create ``target``, which must not exist and does not exist after a failure."""
    console = PlainConsole(highlight=False, soft_wrap=True)
    section = prepare.native(source.model, source.seed, PlainConsole(stderr=True))
    base = section.path
    differences = None
    if options.export.kind is ExportKind.adapter:
        _check_space(target, (source.folder / ADAPTER).stat().st_size)
        with files.staged_folder(target) as staging:
            _write_adapter(source, base, staging)
            (staging / "README.md").write_text(card(source, options.export.kind, target, base, None), encoding="utf-8")
    else:
        precision = options.export.dtype if options.export.dtype is not Precision.auto else own_precision(section)
        _check_space(target, _bytes(section, precision))
        loaded = load([source], options)
        selected = loaded.select()
        prompts = _prompts(source, selected)
        trained = merge.logits(loaded.model, prompts)
        plain = merge.merged(loaded.model, source, section, precision)
        with files.staged_folder(target) as staging:
            if options.export.layout is Layout.published:
                publish(plain.state_dict(), published_source(source), staging)
                written: PreTrainedModel | ModelConfig = plain
            else:
                _write_native(plain, selected, staging)
                del plain
                written = dataclasses.replace(section, path=str(staging), revision=None)
            differences = merge.difference(
                trained, merge.logits(_reloaded(written, source, section, loaded.device), prompts)
            )
            _check_difference(differences, source, precision, section)
            text = card(source, options.export.kind, target, base, differences)
            (staging / "README.md").write_text(text, encoding="utf-8")
    size = sum(file.stat().st_size for file in target.iterdir())
    console.print(f"{target}: {size / 2**20:,.1f} MiB")
    if differences is not None:
        console.print(describe_differences(differences))
    if options.export.layout is Layout.native:
        for what, command in commands(source, options.export.kind, target, base):
            console.print(f"{what}: {command}")


def _check_difference(
    differences: dict[str, float], source: Source, precision: Precision, section: ModelConfig
) -> None:
    """Refuse to keep a merged model that is not the trained one.

    Raises:
        RunFailed: the logits differ by more than rounding explains.
    """
    own = source.precision if source.precision is not Precision.auto else own_precision(section)
    allowed = merge.tolerance(source.quant.kind, own, precision)
    if not differences["relative"] <= allowed:  # NaN too
        raise RunFailed(
            f"the merged model is not the trained one, and was not kept: {describe_differences(differences)}; relative to the logits that "
            f"is {differences['relative']:.2g}, where rounding explains {allowed:g}: use export.kind=adapter"
            + (" or export.dtype=fp32" if precision is not Precision.fp32 else "")
        )


def _check_space(target: Path, size: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < size + SMALL_FILES:
        raise ConfigError(f"output={target}: takes {size / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free")


def _bytes(section: ModelConfig, precision: Precision) -> int:
    """The size of a model's weights, from its config; a few may stay in fp32."""
    config = AutoConfig.from_pretrained(
        section.path, revision=section.revision, trust_remote_code=section.trust_remote_code
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=section.trust_remote_code)
    exact = fp32_weights.found_in(section.path)
    return sum(
        parameter.numel() * (4 if name in exact else int(DTYPES[precision].itemsize))
        for name, parameter in model.named_parameters()
    )


def _prompts(source: Source, selected: LoadedSource) -> list[list[int]]:
    """The prompts as ids, and those of the run's probe."""
    prompts = [prompt_ids(ask(prompt), selected.tokenizer, selected.data) for prompt in PROMPTS]
    probe = source.folder / "probe.json"
    return [*prompts, json.loads(probe.read_text())["input_ids"]] if probe.is_file() else prompts


def _write_native(model: PreTrainedModel, selected: LoadedSource, folder: Path) -> None:
    """Write weights, config, tokenizer, chat template and generation config."""
    tokenizer = selected.tokenizer
    ends = end_ids(tokenizer, model)
    own = model.generation_config or GenerationConfig()
    own.eos_token_id, own.pad_token_id = ends[0] if len(ends) == 1 else ends, tokenizer.pad_token_id
    try:
        own.validate(strict=True)
    except ValueError:  # some published generation configs are inconsistent and cannot be saved
        model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
        )
    model.config.use_cache = True  # off during training only
    model.save_pretrained(folder)
    _write_tokenizer(tokenizer, selected.source, folder)


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, source: Source, folder: Path) -> None:
    """Write the tokenizer with the template that the model was trained with."""
    if source.template != "chat":
        tokenizer.chat_template = jinja(source.template, begin(tokenizer), str(tokenizer.eos_token))
    else:
        tokenizer.chat_template = with_default(tokenizer, source.thinking)
    tokenizer.save_pretrained(folder)


def _write_adapter(source: Source, base: str, folder: Path) -> None:
    """Copy the adapter with the name of its base replaced: in training it may have been a folder of the cache."""
    from hydraft.infer.load import tokenizer_and_data

    shutil.copyfile(source.folder / ADAPTER, folder / ADAPTER)
    settings = json.loads((source.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    files.write_json(folder / ADAPTER_CONFIG, settings | {"base_model_name_or_path": base})
    for name in (base_identity.NAME, "probe.json"):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    tokenizer, _ = tokenizer_and_data(source, PlainConsole(stderr=True))
    _write_tokenizer(tokenizer, source, folder)


def _reloaded(
    written: PreTrainedModel | ModelConfig, source: Source, section: ModelConfig, device: torch.device
) -> PreTrainedModel:
    """The exported model in the precision of training: read from the disk, or from memory in the published layout."""
    precision = source.precision if source.precision is not Precision.auto else own_precision(section)
    if isinstance(written, PreTrainedModel):
        written.to(device, DTYPES[precision]).eval()  # type: ignore[arg-type]
        return written
    native = dataclasses.replace(written, dtype=Precision.auto)
    model = load_base(native, QuantConfig(), precision, device)
    model.eval()
    return model
