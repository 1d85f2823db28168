"""What was found, in memory: one model, its adapters by name, and with each of them how it is asked."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, logging

from hydraft.config.choices import Precision
from hydraft.config.infer import InferConfig
from hydraft.config.schema import DataConfig, ModelConfig
from hydraft.errors import ConfigError
from hydraft.infer.resolve import check_base
from hydraft.infer.source import ADAPTER, Kind, Source
from hydraft.models import generation, prepare
from hydraft.models.families.registry import published_config
from hydraft.models.load import load_base, load_tokenizer


@dataclass
class Speaker:
    """One adapter, or the model itself where there is none: how it is asked."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    """``template`` and ``max_length`` are meant; for ``encode.prompt_ids``."""
    key: str | None
    """What peft calls the adapter; None for a whole model."""


@dataclass
class Loaded:
    """A model that is ready to generate."""

    model: PreTrainedModel | peft.PeftModel
    device: torch.device
    speakers: dict[str, Speaker]
    """By the names of their sources, the first one first."""

    def use(self, name: str | None = None) -> Speaker:
        """Let ``name`` (or the first) answer from now on.

        Raises:
            ConfigError: there is no such one.
        """
        chosen = name or next(iter(self.speakers))
        if chosen not in self.speakers:
            raise ConfigError(f"adapter={chosen}: not among those loaded ({', '.join(self.speakers)})")
        speaker = self.speakers[chosen]
        if speaker.key is not None and len(self.speakers) > 1:
            self.model.set_adapter(speaker.key)
        return speaker


def load(sources: list[Source], options: InferConfig, console: Console | None = None) -> Loaded:
    """The model of ``sources`` with all of their adapters; the first one answers. Notices go to ``console`` (stderr).

    Raises:
        ConfigError: a base cannot be had, or an adapter does not fit it.
    """
    console = console or Console(stderr=True)
    for source in sources:
        for notice in source.notices:
            console.print(f"notice: {notice}", highlight=False, soft_wrap=True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    first = sources[0]
    device = device_of(options.device)
    if device.type == "cuda":
        # What names no card means the current one, else the first: on which each process would keep half a gigabyte, and
        # whose kind may be another.
        torch.cuda.set_device(device)
    if not torch.cuda.is_available():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # peft asks deepspeed, which would else say on the screen that it looked
    section = prepare.native(first.model, first.seed, console)
    for source in sources:
        if source.kind is Kind.adapter:
            check_base(source, options.other_base)  # a hub's model may have come only now
            check_fit(source, section)
    base = load_base(section, first.quant, _precision(first, section, device, console), device)
    generation.own_defaults_away(base)
    speakers = {
        source.name: Speaker(
            source,
            load_tokenizer(tokenizer_of(source, section)),
            _data(source),
            None if source.kind is Kind.model else "default" if index == 0 else f"adapter_{index}",
        )
        for index, source in enumerate(sources)
    }
    model: PreTrainedModel | peft.PeftModel = base
    if first.kind is Kind.adapter:
        model = _adapted(base, list(speakers.values()), first)
    return Loaded(model.eval(), device, speakers)


def words(source: Source, console: Console) -> tuple[PreTrainedTokenizerBase, DataConfig]:
    """How a source is asked, without its model."""
    return load_tokenizer(tokenizer_of(source, prepare.native(source.model, source.seed, console))), _data(source)


def _data(source: Source) -> DataConfig:
    return DataConfig(template=source.template, max_length=source.max_length or sys.maxsize)


def device_of(name: str) -> torch.device:
    """The device that ``device=`` means.

    Raises:
        ConfigError: it is not there.
    """
    cards = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", 0) if cards else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise ConfigError(f"device={name}: {cards} CUDA devices were found; use device=cpu")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def tokenizer_of(source: Source, section: ModelConfig) -> ModelConfig:
    """Where a source's tokenizer is: beside its weights, or, for an adapter that has none, its base's."""
    if (source.folder / "tokenizer_config.json").is_file():
        return ModelConfig(name=source.name, path=str(source.folder), trust_remote_code=section.trust_remote_code)
    return section


def _precision(source: Source, section: ModelConfig, device: torch.device, console: Console) -> Precision:
    precision = source.precision
    if precision is Precision.auto:
        precision = own_precision(section)
    if precision is Precision.fp16 and device.type == "cpu":
        console.print("notice: fp16 needs a GPU; computing in fp32", highlight=False)
        section.dtype, precision = Precision.auto, Precision.fp32
    return precision


def own_precision(section: ModelConfig) -> Precision:
    """The data type that a model's config.json names; fp32 where it names none."""
    folder = Path(section.path).expanduser()
    if folder.is_dir():
        named = published_config(folder)
    else:
        named = AutoConfig.from_pretrained(
            section.path, revision=section.revision, trust_remote_code=section.trust_remote_code
        ).to_dict()
    name = str(named.get("dtype") or named.get("torch_dtype") or "float32")
    return {"float16": Precision.fp16, "bfloat16": Precision.bf16}.get(name.removeprefix("torch."), Precision.fp32)


def _adapted(base: PreTrainedModel, speakers: list[Speaker], first: Source) -> peft.PeftModel:
    fp32 = first.precision is Precision.fp32 and first.model.dtype not in (Precision.auto, Precision.fp32)
    model: peft.PeftModel | None = None
    for speaker in speakers:
        folder, key = str(speaker.source.folder), str(speaker.key)
        try:
            if model is None:
                model = peft.PeftModel.from_pretrained(base, folder, adapter_name=key, autocast_adapter_dtype=fp32)
            else:
                model.load_adapter(folder, adapter_name=key, autocast_adapter_dtype=fp32)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"run={folder}: does not fit {speaker.source.model.path}: {reason}") from error
    assert isinstance(model, peft.PeftModel)
    model.set_adapter(str(speakers[0].key))
    return model


def check_fit(source: Source, section: ModelConfig) -> None:
    """Hold an adapter's tensors against the layers of its base, of which only the shapes are made.

    Raises:
        ConfigError: names the first layer that is missing or of another shape.
    """
    if section.trust_remote_code:
        return  # the shapes would take running the code; peft will see
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(section.path, revision=section.revision, trust_remote_code=False)
        layers = dict(AutoModelForCausalLM.from_config(config).named_modules())
    try:
        with safe_open(source.folder / ADAPTER, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library's own class, or what a cut-off file makes of it
        raise ConfigError(f"{source.folder / ADAPTER}: truncated, or not safetensors ({error})") from None
    if not shapes:
        raise ConfigError(f"{source.folder / ADAPTER}: is empty")
    where = f"run={source.folder}: does not fit {source.model.path}"
    for name, shape in shapes.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if match is None:
            continue
        layer = layers.get(match[1])
        if layer is None:
            raise ConfigError(f"{where}: that has no {match[1]}")
        width = getattr(layer, "in_features" if match[2] == "A" else "out_features", None)
        found = shape[1] if match[2] == "A" else shape[0]
        if width is not None and width != found:
            raise ConfigError(f"{where}: {match[1]} has {width} features there, and {found} in the adapter")
