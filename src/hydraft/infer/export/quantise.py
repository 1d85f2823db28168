"""``export.quant``: replaces a merged model by a quantised one, made by llm-compressor in another process (``compress.py``).

The loss of both on the same records is measured, the quantised one's as transformers loads it again.
"""

import contextlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hydraft.config.choices import ExportQuant
from hydraft.config.infer import InferConfig
from hydraft.config.model import ModelConfig
from hydraft.data.tokenize import Example
from hydraft.errors import ConfigError, RunFailed
from hydraft.infer.export import calibration
from hydraft.infer.export.calibration import RunRecords
from hydraft.infer.source import Source
from hydraft.models import expert_targets, loss_scored
from hydraft.models.families.registry import native_family
from hydraft.system import files
from hydraft.system.console import Screen
from hydraft.system.source_tree import own_code_first

GROUP_SIZES = (128, 64, 32)
"""Weights that share a scale, the usual number first; those for which vLLM has kernels."""
EXPECTED = {ExportQuant.gptq: 0.1, ExportQuant.awq: 0.1, ExportQuant.fp8: 0.03}
"""The rise of the loss, as a share of it, above which a notice is printed."""
NEGLIGIBLE = 0.02
"""A rise of the loss, in nats a token, that is none, however small the loss is."""
LAYER = re.compile(r"\((\d+)/(\d+)\): (Calibrating|Propagating)")
"""What llm-compressor's bars say of the part of the model that it is at."""
RAISED = re.compile(r"[\w.]+(Error|Exception): ")
"""A line that names an exception."""
FOLDER = "quantised"
"""Of the quantised model, within that of the merged one."""
RECIPE = "recipe.yaml"
"""What llm-compressor writes of its settings besides config.json, with tags that only an unsafe YAML loader reads."""


@dataclass(frozen=True)
class Requested:
    """A quantisation that can be made."""

    kind: ExportQuant
    group_size: int | None
    """None for FP8."""
    records: RunRecords


@dataclass(frozen=True)
class Quality:
    """The loss of the merged and of the quantised model, in nats a trained token."""

    kind: ExportQuant
    group_size: int | None
    records: RunRecords
    merged: float
    quantised: float

    @property
    def described(self) -> str:
        """A sentence."""
        rise = self.quantised / self.merged - 1
        return (
            f"loss on {self.records.described}: {self.merged:.4f} merged, {self.quantised:.4f} quantised ({rise:+.1%})"
        )

    @property
    def notice(self) -> str | None:
        """A line about a loss that rises by more than is usual."""
        if self.quantised <= self.merged + max(EXPECTED[self.kind] * self.merged, NEGLIGIBLE):
            return None
        others = "export.quant=fp8, or a larger export.calibration" if self.kind.calibrated else "no export.quant"
        return f"the loss rises by more than the usual {EXPECTED[self.kind]:.0%}: try {others}"

    @property
    def section(self) -> str:
        """A section of the model card."""
        grouped = "" if self.group_size is None else f", 4 bits in groups of {self.group_size}"
        calibrated = (
            f", calibrated on {len(self.records.calibration)} training sequences" if self.kind.calibrated else ""
        )
        how = f"{self.kind.value} by llm-compressor {files.version_of('llmcompressor')}{grouped}{calibrated}"
        return f"## Quantisation\n\n{how}; {self.described}\n"


def request(source: Source, options: InferConfig, section: ModelConfig) -> Requested:
    """What ``export.quant`` asks for, checked before the weights are read.

    Raises:
        ConfigError: the layers or the code of the model do not allow it, or its records cannot be read.
    """
    kind = options.export.quant
    assert kind is not None
    config = AutoConfig.from_pretrained(
        section.path, revision=section.revision, trust_remote_code=section.trust_remote_code
    )
    family = native_family(config.model_type)
    if section.trust_remote_code or (family is not None and family.alibi):
        raise ConfigError(
            f"export.quant={kind.value}: the class of {section.path} is not one of transformers: leave it out"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if expert_targets.has_experts(model):
        raise ConfigError(
            f"export.quant={kind.value}: llm-compressor quantises linear layers, and the experts of this model, nearly all of its weights, "
            "would stay in 16 bits: leave it out"
        )
    size = None
    if kind.calibrated:
        size = _group_size(model, kind)
    return Requested(kind, size, calibration.read(source, options))


def _group_size(model: PreTrainedModel, kind: ExportQuant) -> int:
    head = model.get_output_embeddings()
    layers = {
        name: layer.in_features
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer is not head
    }
    found = next((size for size in GROUP_SIZES if all(width % size == 0 for width in layers.values())), None)
    if found is None:
        name = next(name for name, width in layers.items() if width % GROUP_SIZES[-1])
        raise ConfigError(
            f"export.quant={kind.value}: needs layers whose inputs are a multiple of {GROUP_SIZES[-1]}, and {name} has {layers[name]}: "
            "use export.quant=fp8"
        )
    return found


def quantise(requested: Requested, folder: Path, device: torch.device, gpu: torch.device) -> Quality:
    """Replace the weights and the config in ``folder`` by quantised ones.

    Args:
        requested: what to make.
        folder: of the merged model, with its tokenizer.
        device: on which it fits.
        gpu: for llm-compressor, which needs room for one layer at a time; the CPU without one.

    Raises:
        RunFailed: llm-compressor fails, or what it makes is not a language model any more.
    """
    before = _measured(folder, requested.records.measured, device)
    _compress(requested, folder, gpu)
    made = folder / FOLDER
    for old in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        old.unlink()
    for new in made.iterdir():
        if new.name != RECIPE:
            new.replace(folder / new.name)
    shutil.rmtree(made)
    after = _measured(folder, requested.records.measured, device)
    quality = Quality(requested.kind, requested.group_size, requested.records, before, after)
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size", math.inf)
    if not after < max(math.log(vocabulary), 2 * before):  # NaN too
        raise RunFailed(f"export.quant={requested.kind.value}: the quantised model was not kept: {quality.described}")
    return quality


def _measured(folder: Path, examples: list[Example], device: torch.device) -> float:
    """The mean loss of a model folder on the trained tokens of ``examples``."""
    with contextlib.redirect_stderr(io.StringIO()):  # bars of compressed-tensors
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        model.to(device).eval()
        with torch.no_grad():  # compressed-tensors decompresses in the first pass
            model(input_ids=torch.tensor([examples[0]["input_ids"]], device=device))
    total, tokens = 0.0, 0
    for example in examples:
        batch = {name: torch.tensor([example[name]], device=device) for name in ("input_ids", "labels")}
        found = loss_scored.losses(model, batch, loss_scored.chunks_of([example]))
        total, tokens = total + float(found.total), tokens + found.tokens
    return total / tokens


def _compress(requested: Requested, folder: Path, device: torch.device) -> None:
    settings = folder / "compress.json"
    values = {
        "model": str(folder),
        "output": str(folder / FOLDER),
        "kind": requested.kind.value,
        "group_size": requested.group_size,
        "ids": [list(example["input_ids"]) for example in requested.records.calibration],
    }
    settings.write_text(json.dumps(values), encoding="utf-8")
    command = [sys.executable, "-m", "hydraft.infer.export.compress", str(settings)]
    with (
        Screen(os.dup(2), visible=True) as screen,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment(device), bufsize=0
        ) as process,
    ):
        try:
            said = _follow(process, screen, f"quantising ({requested.kind.value})")
        except BaseException:
            process.kill()
            raise
    settings.unlink()
    if process.returncode != 0:
        lines = [line.strip() for line in said.splitlines() if line.strip()] or [f"exit code {process.returncode}"]
        raised = [line for line in lines if RAISED.match(line)]
        why = (raised or lines)[-1]
        raise RunFailed(f"export.quant={requested.kind.value}: llm-compressor failed, and nothing was kept: {why}")


def _follow(process: "subprocess.Popen[bytes]", screen: Screen, name: str) -> str:
    """Show how far llm-compressor is until it ends, and return the last of what it printed."""
    assert process.stdout is not None
    screen.phase(name)
    said, reached = "", 0
    while part := process.stdout.read(1 << 12):
        said = (said + part.decode("utf-8", "replace"))[-(1 << 14) :]
        for layer, of, what in LAYER.findall(said):
            screen.progress.update(screen.task, total=2 * int(of), left="left")
            step = 2 * int(layer) - (what == "Calibrating")
            screen.advance(max(0, step - reached))
            reached = max(reached, step)
    return said


def _environment(device: torch.device) -> dict[str, str]:
    """The environment of the other process, with the GPU ``device`` alone."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else []
    index = device.index or 0
    gpu = "" if device.type == "cpu" else gpus[index] if index < len(gpus) else str(index)
    return {
        **os.environ,
        "PYTHONPATH": own_code_first(),
        "CUDA_VISIBLE_DEVICES": gpu,
        "TOKENIZERS_PARALLELISM": "false",
        "LLM_COMPRESSOR_LOG_LEVEL": "WARNING",
    }
