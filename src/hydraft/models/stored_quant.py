"""The quantisation that a checkpoint's weights are stored in, read from its files before anything is loaded. No torch.

A bitsandbytes checkpoint trains on as it is stored, as with ``quant=nf4`` or ``quant=int8``. FP8 and MXFP4 weights are dequantised
once, into the cache (``dequantized.py``). Other formats are refused.
"""

import dataclasses
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydraft.config.choices import Init, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.errors import ConfigError
from hydraft.models import shapes
from hydraft.models.families.registry import published_config, published_family

DEQUANTISED = {"fp8": "FP8", "mxfp8": "MXFP8", "mxfp4": "MXFP4"}
"""The formats that are dequantised into the cache: ``quant_method`` of config.json, and its name."""

SIDECARS = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files beside config.json in which AutoGPTQ, AutoAWQ and ModelOpt recorded a quantisation, and its ``quant_method``."""

PACKED = {"U8", "I8", "U16", "I16", "U32", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"}
"""Data types of safetensors that a weight has only if it is quantised."""

SUFFIX = re.compile(
    r"(?i)[-_.](?:gptq|awq|hqq|aqlm|exl[23]|bnb|fp8|nvfp4|mxfp[48]|int[248]|w[0-9]+a[0-9]+|quantized|torchao|autoround|[248]-?bits?)"
    r"(?:[-_.].*)?$"
)
"""What the names of quantised checkpoints have after the name of the checkpoint that they were made from."""


@dataclass(frozen=True)
class Stored:
    """How the weights of a checkpoint are stored."""

    method: str
    """``quant_method`` of its config.json."""
    detail: str
    """The method with its bits, for messages."""
    quant: QuantConfig | None = None
    """The quant section of every run over it; None for a checkpoint that is not of bitsandbytes."""
    partly: bool = False
    """Whether some linear layers are stored unquantised (``llm_int8_skip_modules``)."""

    @property
    def dequantised(self) -> bool:
        """Whether it is dequantised into the cache on first use."""
        return self.method in DEQUANTISED


def stored(model: ModelConfig) -> Stored | None:
    """How a local folder, or a hub model in the hub's cache, stores its weights.

    Returns:
        None for unquantised weights, random weights, a model that is not on this machine, and one in a published layout, whose
        family checks it.
    """
    if model.init is Init.random:
        return None
    folder = shapes.folder_of(model)
    if folder is None or not (folder / "config.json").is_file():
        return None
    config = published_config(folder)
    if published_family(folder) is not None:
        return None
    return recorded(config) or _unrecorded(folder)


def recorded(config: Mapping[str, Any]) -> Stored | None:
    """The quantisation that a config.json records, for the model or for its language model."""
    inner = [part for name in ("text_config", "llm_config") if isinstance(part := config.get(name), Mapping)]
    for part in (config, *inner):
        for key in ("quantization_config", "compression_config"):
            if isinstance(found := part.get(key), Mapping) and found:
                return _described(found, "compressed-tensors" if key == "compression_config" else "")
    return None


def _described(found: Mapping[str, Any], method: str) -> Stored:
    method = str(found.get("quant_method") or method or "bitsandbytes").lower().replace("_", "-").removesuffix("-4bit")
    partly = bool(found.get("llm_int8_skip_modules"))
    if found.get("load_in_4bit") or found.get("_load_in_4bit"):
        kind = str(found.get("bnb_4bit_quant_type", "fp4"))
        quant = QuantConfig(QuantKind.nf4, bool(found.get("bnb_4bit_use_double_quant")))
        return Stored("bitsandbytes", f"bitsandbytes {kind}", quant if kind == "nf4" else None, partly)
    if found.get("load_in_8bit") or found.get("_load_in_8bit"):
        return Stored("bitsandbytes", "bitsandbytes int8", QuantConfig(QuantKind.int8), partly)
    if method in DEQUANTISED:
        return Stored(method, DEQUANTISED[method])
    bits = found.get("bits", found.get("w_bit", found.get("nbits")))
    return Stored(method, f"{method} ({bits} bits)" if isinstance(bits, int) else method)


def _unrecorded(folder: Path) -> Stored | None:
    """A quantisation that config.json does not record: loaded as it is, an FP8 weight would be read without its scales."""
    for file in sorted(folder.glob("*.safetensors")):
        for name, dtype in _types(file):
            if name.endswith((".weight", ".qweight", ".weight_packed")) and dtype in PACKED:
                beside = next((method for other, method in SIDECARS.items() if (folder / other).is_file()), None)
                found = f"{dtype} ({name} in {file.name}, and no quantization_config in config.json)"
                return Stored(beside or "unrecorded", beside or found)
    return None


def _types(file: Path) -> Iterator[tuple[str, str]]:
    """The name and data type of each tensor of a safetensors file, by its header; none for a damaged file, which loading reports."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            head = json.loads(stream.read(min(length, file.stat().st_size)))
        yield from ((str(name), str(tensor["dtype"])) for name, tensor in head.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return


def refuse(model: ModelConfig) -> None:
    """Refuse a checkpoint in a format that cannot be trained or loaded here.

    Raises:
        ConfigError: names the checkpoint to use instead, as far as its name tells.
    """
    found = stored(model)
    if found is None or found.dequantised or found.quant is not None:
        return
    raise ConfigError(f"model.path={model.path}: {_unsupported(model, found)}")


def _unsupported(model: ModelConfig, found: Stored) -> str:
    name = Path(model.path).name
    original = SUFFIX.sub("", name)
    guess = f" (by its name {Path(model.path).with_name(original)})" if original not in ("", name) else ""
    return (
        f"its weights are stored as {found.detail}, which is not supported: give the unquantised checkpoint that it was made from{guess}, "
        "with quant=nf4 or quant=int8 if memory is short"
    )


def follow(model: ModelConfig, quant: QuantConfig) -> tuple[QuantConfig, str | None]:
    """The quant section of a run over a checkpoint, and a note if the checkpoint decides something.

    Raises:
        ConfigError: the checkpoint is stored in another quantisation than ``quant``, or in one that is not supported.
    """
    refuse(model)
    found = stored(model)
    if found is None:
        return quant, None
    if found.quant is None:
        return quant, f"{model.path}: stored as {found.detail}; it is dequantised to bf16 once, into the cache"
    if quant.kind is not QuantKind.none:
        agree(model, quant, found)
    note = f"{model.path}: stored as {found.detail}, and used as it is: quant={found.quant.kind.value}"
    return dataclasses.replace(found.quant), note + "; layers stored unquantised stay so" * found.partly


def check(model: ModelConfig, quant: QuantConfig) -> None:
    """``agree`` with what is known of a checkpoint by now.

    Raises:
        ConfigError: see ``agree``.
    """
    found = stored(model)
    if found is not None and not found.dequantised:
        agree(model, quant, found)


def agree(model: ModelConfig, quant: QuantConfig, found: Stored | None) -> None:
    """Refuse to load a checkpoint, stored as ``found``, with another quantisation.

    Raises:
        ConfigError: the message has both.
    """
    if found is None or (found.quant is not None and found.quant.kind is quant.kind):
        return
    if found.quant is None:
        raise ConfigError(f"model.path={model.path}: {_unsupported(model, found)}")
    kind = found.quant.kind.value
    raise ConfigError(
        f"quant={quant.kind.value}: the weights of model.path={model.path} are stored as {found.detail}: use quant={kind}, or the "
        "unquantised checkpoint that it was made from"
    )
