"""Loads a base model with one or several adapters, and the tokenizer and template of each."""

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import peft
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, logging

from hydraft.config.choices import InferMode, Precision, QuantKind, Thinking
from hydraft.config.data import DataConfig
from hydraft.config.infer import InferConfig
from hydraft.config.model import ModelConfig
from hydraft.data.records import ask
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError
from hydraft.infer.resolve import check_base
from hydraft.infer.source import ADAPTER, Kind, Source
from hydraft.models import experts, generation, prepare, quantised_copy
from hydraft.models.families.registry import published_config
from hydraft.models.load import check_vocabulary, load_base, load_tokenizer
from hydraft.system.plain_console import PlainConsole


@dataclass
class LoadedSource:
    """An adapter, or a model without one, with what its prompts need."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    """``template``, ``thinking`` and ``max_length``, for ``tokenize.prompt_ids``."""
    adapter_name: str | None
    """Its name in the PeftModel; None for a whole model."""


@dataclass
class LoadedModel:
    """A model in eval mode with all of its adapters."""

    model: PreTrainedModel | peft.PeftModel
    device: torch.device
    sources: dict[str, LoadedSource]
    """By name, in the order of ``run=``."""

    def select(self, name: str | None = None) -> LoadedSource:
        """Activate the adapter ``name``, by default the first.

        Raises:
            ConfigError: there is none of that name.
        """
        chosen = name or next(iter(self.sources))
        if chosen not in self.sources:
            raise ConfigError(f"adapter={chosen}: not among those loaded ({', '.join(self.sources)})")
        selected = self.sources[chosen]
        if selected.adapter_name is not None and len(self.sources) > 1:
            self.model.set_adapter(selected.adapter_name)
        return selected


def load(sources: list[Source], options: InferConfig, console: Console | None = None) -> LoadedModel:
    """The model of ``sources`` with all of their adapters, the first one active. Notices are printed on ``console`` (stderr).

    Raises:
        ConfigError: a base is not available, or an adapter does not fit it.
    """
    console = console or PlainConsole(stderr=True)
    for source in sources:
        for notice in source.notices:
            console.print(f"notice: {notice}", highlight=False, soft_wrap=True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    first = sources[0]
    device = device_of(options.device)
    if device.type == "cuda":
        # Calls without a device index use the current device. By default that is the first GPU, on which every process would
        # then allocate half a gigabyte, and which may be of another kind.
        torch.cuda.set_device(device)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft imports deepspeed, which would print a line otherwise
    section, precision = _prepared(first, options, device, console)
    for source in sources:
        if source.kind is Kind.adapter:
            check_base(source, options.other_base)  # a model of the hub may have been downloaded only now
            check_fit(source, section)
    tokenizers = {source.name: _tokenizer(source, section) for source in sources}
    for source in sources:
        check_thinking(tokenizers[source.name], source, options)
    base = load_base(section, first.quant, precision, device)
    generation.drop_checkpoint_defaults(base)
    loaded = {
        source.name: LoadedSource(
            source,
            tokenizers[source.name],
            _data(source),
            None if source.kind is Kind.model else "default" if index == 0 else f"adapter_{index}",
        )
        for index, source in enumerate(sources)
    }
    model: PreTrainedModel | peft.PeftModel = base
    if first.kind is Kind.adapter:
        model = _adapted(base, list(loaded.values()), first)
    return LoadedModel(model.eval(), device, loaded)


def tokenizer_and_data(
    source: Source, console: Console, options: InferConfig | None = None
) -> tuple[PreTrainedTokenizerBase, DataConfig]:
    """The tokenizer and the template settings of a source, without its model; ``options``: with which processes will load that."""
    if options is None:
        section = prepare.native(source.model, source.seed, console)
    else:
        section, _ = _prepared(source, options, device_of(options.device), console)
    return load_tokenizer(tokenizer_of(source, section)), _data(source)


def _prepared(
    source: Source, options: InferConfig, device: torch.device, console: Console
) -> tuple[ModelConfig, Precision]:
    """The prepared model section, and the compute type. An export needs the unquantised weights; otherwise those of a copy will do."""
    model, precision = source.model, source.precision
    known = prepare.native(model, source.seed, console) if precision is Precision.auto else None
    if known is not None:
        precision = own_precision(known)
    if precision is Precision.fp16 and device.type == "cpu":
        console.print("notice: fp16 needs a GPU; computing in fp32", highlight=False)
        model, precision = replace(model, dtype=Precision.auto), Precision.fp32
        known = None if known is None else replace(known, dtype=Precision.auto)
    exports = options.mode is InferMode.export
    storage = None if exports else quantised_copy.storage(model, source.quant, precision)
    if known is None or storage is not None:
        known = prepare.native(model, source.seed, console, storage=storage)
    return known, precision


def _tokenizer(source: Source, section: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a source, whose tokens all have a row in the embedding of the base."""
    used = tokenizer_of(source, section)
    tokenizer = load_tokenizer(used)
    check_vocabulary(tokenizer, section, None if used is section else source.folder)
    return tokenizer


def check_thinking(tokenizer: PreTrainedTokenizerBase, source: Source, options: InferConfig) -> None:
    """Refuse ``thinking=on`` and ``thinking=off`` for a model that is prompted in the same way with both.

    Raises:
        ConfigError: there is nothing to turn on or off.
    """
    if options.thinking is Thinking.auto:
        return
    modes = [replace(_data(source), thinking=mode) for mode in (Thinking.on, Thinking.off)]
    if len({tuple(prompt_ids(ask("?"), tokenizer, data)) for data in modes}) == 1:
        raise ConfigError(
            f"thinking={options.thinking.value}: the chat template of {source.name} has no way to turn thinking on or off: leave it out"
        )


def _data(source: Source) -> DataConfig:
    return DataConfig(template=source.template, max_length=source.max_length or sys.maxsize, thinking=source.thinking)


def device_of(name: str) -> torch.device:
    """The device of ``device=``.

    Raises:
        ConfigError: there is no such GPU.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ConfigError(f"device={name}: {gpus} CUDA devices were found; use device=cpu")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def tokenizer_of(source: Source, section: ModelConfig) -> ModelConfig:
    """The model section of a source's tokenizer: its own folder, or its base for an adapter without a tokenizer."""
    if (source.folder / "tokenizer_config.json").is_file():
        return ModelConfig(name=source.name, path=str(source.folder), trust_remote_code=section.trust_remote_code)
    return section


def own_precision(section: ModelConfig) -> Precision:
    """The data type in a model's config.json; fp32 if it has none."""
    folder = Path(section.path).expanduser()
    if folder.is_dir():
        named = published_config(folder)
    else:
        named = AutoConfig.from_pretrained(
            section.path, revision=section.revision, trust_remote_code=section.trust_remote_code
        ).to_dict()
    name = str(named.get("dtype") or named.get("torch_dtype") or "float32")
    return {"float16": Precision.fp16, "bfloat16": Precision.bf16}.get(name.removeprefix("torch."), Precision.fp32)


def _adapted(base: PreTrainedModel, sources: list[LoadedSource], first: Source) -> peft.PeftModel:
    fp32 = first.precision is Precision.fp32 and first.model.dtype not in (Precision.auto, Precision.fp32)
    model: peft.PeftModel | None = None
    for selected in sources:
        folder, key = str(selected.source.folder), str(selected.adapter_name)
        try:
            if model is None:
                model = peft.PeftModel.from_pretrained(base, folder, adapter_name=key, autocast_adapter_dtype=fp32)
            else:
                model.load_adapter(folder, adapter_name=key, autocast_adapter_dtype=fp32)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"run={folder}: does not fit {selected.source.model.path}: {reason}") from error
    assert isinstance(model, peft.PeftModel)
    model.set_adapter(str(sources[0].adapter_name))
    return model


def check_fit(source: Source, section: ModelConfig) -> None:
    """Compare an adapter's tensors with the layers of its base, on the meta device.

    Raises:
        ConfigError: the first layer that is missing or of another shape.
    """
    if section.trust_remote_code:
        return  # the shapes would require running its code; peft compares them on loading
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(section.path, revision=section.revision, trust_remote_code=False)
        layers = dict(AutoModelForCausalLM.from_config(config).named_modules())
    try:
        with safe_open(source.folder / ADAPTER, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' own class, or others for a truncated file
        raise ConfigError(f"{source.folder / ADAPTER}: truncated, or not safetensors ({error})") from None
    if not shapes:
        raise ConfigError(f"{source.folder / ADAPTER}: is empty")
    where = f"run={source.folder}: does not fit {source.model.path}"
    for name, shape in shapes.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if match is None:
            continue
        layer = layers.get(match[1].replace(".base_layer", ""))  # of peft's layers inside each other, for experts
        if layer is None:
            raise ConfigError(f"{where}: the base has no {match[1]}")
        if source.quant.kind is QuantKind.nf4 and experts.is_experts(layer):
            raise ConfigError(
                f"run={source.folder}: it adapts experts ({match[1]}), and quant=nf4 keeps those in 4 bits, where peft cannot: use quant=none"
            )
        width = getattr(layer, "in_features" if match[2] == "A" else "out_features", None)
        found = shape[1] if match[2] == "A" else shape[0]
        if width is not None and width != found:
            raise ConfigError(f"{where}: {match[1]} has {width} features in the base, and {found} in the adapter")
