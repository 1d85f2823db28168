"""Writes an export: weights, tokenizer, chat template, generation config and model card, in a staging folder that is renamed at the end."""

import dataclasses
import gc
import json
import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hydraft.config.choices import ExportKind, Layout, Precision
from hydraft.config.infer import InferConfig
from hydraft.config.model import ModelConfig
from hydraft.data.records import ask
from hydraft.data.rendering import begin
from hydraft.data.template_default import with_default
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError, RunFailed
from hydraft.infer.export import card_head, compare, merge, native_layout, ollama, placement, push, quantise
from hydraft.infer.export.chat_template import jinja
from hydraft.infer.export.model_card import card, commands, describe_differences
from hydraft.infer.export.published_layout import publish
from hydraft.infer.export.published_source import published_source
from hydraft.infer.load import LoadedSource, device_of, load, own_precision, tokenizer_and_data
from hydraft.infer.resolve import ADAPTER_CONFIG
from hydraft.infer.source import ADAPTER, Source
from hydraft.models import base_identity, prepare
from hydraft.models.generation import end_ids
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
    differences = quality = None
    if options.export.kind is ExportKind.adapter:
        _check_space(target, (source.folder / ADAPTER).stat().st_size)
        with files.staged_folder(target) as staging:
            _write_adapter(source, base, staging)
            if options.export.push is not None:
                push.without_folders(staging, str(card_head.base_model(source)))
            (staging / "README.md").write_text(
                card(source, options.export.kind, target, base, None, options.export.license), encoding="utf-8"
            )
    else:
        precision = options.export.dtype if options.export.dtype is not Precision.auto else own_precision(section)
        recipe = _recipe(source, section, options, target)
        sizes = placement.sizes(section, source.quant, _trained_precision(source, section), precision)
        requested = None if options.export.quant is None else quantise.request(source, options, section)
        _check_space(target, sizes.merged * (1 if recipe is None and requested is None else 2))
        with files.staged_folder(target) as staging:
            prompts, trained = _merge(source, section, options, sizes, staging)
            _release()
            device = _device(options, sizes.merged + sizes.working, "the merged model")
            computed = _trained_precision(source, section)
            again = compare.exported_logits(staging, options.export.layout, section, computed, device, prompts)
            differences = compare.difference(trained, again)
            _check_difference(differences, source, precision, section)
            if requested is not None:
                quality = quantise.quantise(requested, staging, device, device_of(options.device))
                source = dataclasses.replace(source, quantised=requested.kind.value)
            text = card(source, options.export.kind, target, base, differences, options.export.license)
            text += "" if quality is None else f"\n{quality.section}"
            (staging / "README.md").write_text(text, encoding="utf-8")
            if recipe is not None:
                ollama.finish(recipe, staging, source, options, (precision, target.name))
    size = sum(file.stat().st_size for file in target.iterdir())
    console.print(f"{target}: {size / 2**20:,.1f} MiB")
    if differences is not None:
        console.print(describe_differences(differences))
    if quality is not None:
        console.print(quality.described)
        if quality.notice is not None:
            PlainConsole(stderr=True).say(f"notice: {quality.notice}")
    if options.export.layout is Layout.native:
        for what, command in commands(source, options.export.kind, target, base):
            console.print(f"{what}: {command}")


def _recipe(source: Source, section: ModelConfig, options: InferConfig, target: Path) -> ollama.Recipe | None:
    """With ``export.kind=ollama``, what can be known of the model before its weights are loaded."""
    if options.export.kind is not ExportKind.ollama:
        return None
    tokenizer, _ = tokenizer_and_data(source, PlainConsole(stderr=True))
    _set_template(tokenizer, source)
    return ollama.prepare(tokenizer, section, options, target)


def _merge(
    source: Source, section: ModelConfig, options: InferConfig, sizes: placement.Sizes, staging: Path
) -> tuple[list[list[int]], compare.Logits]:
    """Write the merged model to ``staging``; all that was loaded for it is released when this returns.

    Returns:
        The prompts to compare both models on, and the logits of the trained one.
    """
    precision = options.export.dtype if options.export.dtype is not Precision.auto else own_precision(section)
    device = _device(options, sizes.trained + sizes.working, "the trained model")
    loaded = load([source], dataclasses.replace(options, device=str(device)))
    selected = loaded.select()
    prompts = _prompts(source, selected)
    trained = compare.logits(loaded.model, prompts)
    merged = merge.merged(loaded.model, source, section, precision)
    console = PlainConsole(stderr=True)
    if options.export.layout is Layout.published:
        publish(merged.weights, published_source(source), staging, console)
    else:
        _settle_generation(merged.base, selected.tokenizer)
        native_layout.write(merged, DTYPES[precision], staging, console)
        _write_tokenizer(selected.tokenizer, selected.source, staging)
    return prompts, trained


def _device(options: InferConfig, needed: int, what: str) -> torch.device:
    device, notice = placement.device_for(options.device, needed)
    if notice is not None:
        PlainConsole(stderr=True).print(f"notice: {what} {notice}", soft_wrap=True)
    return device


def _release() -> None:
    """Free what is no longer referenced: modules and their hooks are cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _trained_precision(source: Source, section: ModelConfig) -> Precision:
    return source.precision if source.precision is not Precision.auto else own_precision(section)


def _check_difference(
    differences: dict[str, float], source: Source, precision: Precision, section: ModelConfig
) -> None:
    """Refuse to keep a merged model that is not the trained one.

    Raises:
        RunFailed: the logits differ by more than rounding explains.
    """
    allowed = compare.tolerance(source.quant.kind, _trained_precision(source, section), precision)
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


def _prompts(source: Source, selected: LoadedSource) -> list[list[int]]:
    """The prompts as ids, and those of the run's probe."""
    prompts = [prompt_ids(ask(prompt), selected.tokenizer, selected.data) for prompt in PROMPTS]
    probe = source.folder / "probe.json"
    return [*prompts, json.loads(probe.read_text())["input_ids"]] if probe.is_file() else prompts


def _settle_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set what ends an answer in the model's generation config, and what training has turned off."""
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


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, source: Source, folder: Path) -> None:
    _set_template(tokenizer, source)
    tokenizer.save_pretrained(folder)


def _set_template(tokenizer: PreTrainedTokenizerBase, source: Source) -> None:
    """Give the tokenizer the template that the model was trained with."""
    if source.template != "chat":
        tokenizer.chat_template = jinja(source.template, begin(tokenizer), str(tokenizer.eos_token))
    else:
        tokenizer.chat_template = with_default(tokenizer, source.thinking)


def _write_adapter(source: Source, base: str, folder: Path) -> None:
    """Copy the adapter with the name of its base replaced: in training it may have been a folder of the cache."""
    shutil.copyfile(source.folder / ADAPTER, folder / ADAPTER)
    settings = json.loads((source.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    files.write_json(folder / ADAPTER_CONFIG, settings | {"base_model_name_or_path": base})
    for name in (base_identity.NAME, "probe.json"):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    tokenizer, _ = tokenizer_and_data(source, PlainConsole(stderr=True))
    _write_tokenizer(tokenizer, source, folder)
