"""Writes a copy of a checkpoint with NF4 weights, as transformers saves a model that bitsandbytes quantised: the process that does it.

transformers' own loader goes through the checkpoint, so that every architecture's tensors are renamed and merged as in a run. In memory are
one weight and the shard that is being filled. The copy is loaded by ``from_pretrained``, and its weights are bit-equal to those that are
quantised on loading.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, logging

from hydraft.config.choices import Precision
from hydraft.models import nf4
from hydraft.models.architectures.register import register
from hydraft.models.convert import shards
from hydraft.models.experts import STORED, is_stacked, quantised
from hydraft.models.families.registry import published_config
from hydraft.models.quant import DTYPES
from hydraft.models.quantised_copy import SOURCE, Job, small_files
from hydraft.models.streaming import each_parameter

SHARD = 1 << 30
"""Bytes after which a file is written."""

CONSTANTS = 2 << 10
"""Bytes per layer of what is stored for every weight: tables, shape and type."""

INTERVAL = 0.1
"""Seconds between reports of progress."""

Report = Callable[..., None]


@dataclass
class _Shards:
    """Collects tensors, and writes them to files of about ``SHARD`` bytes."""

    folder: Path
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    placed: dict[str, int] = field(default_factory=dict)
    size: int = 0
    total: int = 0
    count: int = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        held = torch.empty(tensor.shape, dtype=tensor.dtype)  # a view of the mapped checkpoint would not be written
        held.copy_(tensor.detach())
        self.tensors[name] = held
        self.size += held.nbytes
        if self.size >= SHARD:
            self._write()

    def _write(self) -> None:
        self.count += 1
        save_file(self.tensors, self.folder / f"{self.count}.safetensors", {"format": "pt"})
        self.placed |= dict.fromkeys(self.tensors, self.count)
        self.total += self.size
        self.tensors, self.size = {}, 0

    def finish(self) -> None:
        """Write the rest, and the index."""
        if self.tensors:
            self._write()
        names = {number: f"model-{number:05d}-of-{self.count:05d}.safetensors" for number in range(1, self.count + 1)}
        for number, name in names.items():
            (self.folder / f"{number}.safetensors").rename(self.folder / name)
        placed = {name: names[number] for name, number in self.placed.items()}
        index = {"metadata": {"total_size": self.total}, "weight_map": placed}
        (self.folder / shards.INDEXES[0]).write_text(json.dumps(index), encoding="utf-8")


class _Copying:
    """Quantises on ``device`` what transformers' loader reads, and writes it."""

    def __init__(self, job: Job, device: torch.device, report: Report) -> None:
        self.job, self.device, self.report = job, device, report
        self.shards = _Shards(Path(job.target))
        self.done = self.total = 0
        self.reported = 0.0

    def quantise(self, layer: Linear4bit, weight: torch.Tensor) -> Params4bit:
        codes, state = nf4.quantise_whole(weight, self.job.double_quant, torch.uint8, self.device)
        return Params4bit(codes, requires_grad=False, quant_state=state, bnb_quantized=True)

    def visit(self, model: PreTrainedModel, name: str, value: torch.Tensor) -> None:
        if not self.total:
            self.total = _elements(model)
            _check_space(model, self.job)
        module, _, last = name.rpartition(".")
        if is_stacked(model.get_submodule(module), last):
            value = quantised(value.to(self.device), self.job.double_quant, torch.uint8)
        self.shards.add(name, value.data)
        state = getattr(value, "quant_state", None)
        for part, tensor in ({} if state is None else state.as_dict(packed=True)).items():
            self.shards.add(f"{name}.{part}", tensor)
        self.done += value.numel() if state is None else state.shape.numel()
        if time.monotonic() - self.reported > INTERVAL:
            self.report(done=self.done, total=self.total)
            self.reported = time.monotonic()


def _elements(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_space(model: PreTrainedModel, job: Job) -> None:
    """Raise ``OSError`` if the disk has no room for the copy."""
    needed = 0
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if (isinstance(module, Linear4bit) and name == "weight") or is_stacked(module, name):
                payload = nf4.Payload(parameter.shape, job.double_quant, 1)
                needed += payload.bytes + CONSTANTS
            else:
                needed += parameter.numel() * parameter.dtype.itemsize
    free = shutil.disk_usage(job.target).free
    if free < needed:
        raise OSError(f"it takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")


def write(job: Job, report: Report) -> None:
    """Write the copy to ``job.target``, an existing folder.

    Raises:
        OSError: the disk has no room for it.
        ValueError: the checkpoint has no tensor for a weight, or transformers would not find what was written.
    """
    register()
    if torch.cuda.is_available():
        try:
            _write(job, torch.device("cuda", 0), report)
        except torch.OutOfMemoryError:  # another process uses the GPU
            for file in Path(job.target).glob("*.safetensors"):
                file.unlink()
        else:
            return
    _write(job, torch.device("cpu"), report)


def _write(job: Job, device: torch.device, report: Report) -> None:
    copying = _Copying(job, device, report)
    dtype = DTYPES[Precision(job.precision)]
    stored = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=job.double_quant,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )
    with each_parameter(copying.visit, copying.quantise):
        _load(job.source, dtype=dtype, quantization_config=stored)
    copying.shards.finish()
    _write_the_rest(job, stored)
    _check(job)


def _check(job: Job) -> None:
    """Refuse a copy whose tensors transformers does not place in a quantised model as in an unquantised one, as with Llama 4's experts."""
    try:
        with each_parameter(lambda model, name, value: None):  # of mapped files hardly anything is read for this
            unknown = _load(job.target, dtype=DTYPES[Precision(job.precision)], device_map={"": "cpu"})
    except Exception as error:
        raise ValueError(f"transformers does not load what is quantised ({type(error).__name__}: {error})") from error
    if unknown:
        raise ValueError(f"transformers does not load what is quantised ({unknown[0]} has no place)")


def _load(folder: str, **options: Any) -> list[str]:
    """Have transformers go through a checkpoint; returns the names of tensors that have no place in the model."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, **options
    )
    info = loaded[1]
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{missing[0]} is in none of its weight files ({len(missing)} tensors are missing)")
    return sorted(name for name in info["unexpected_keys"] if not STORED.search(name))


def _write_the_rest(job: Job, stored: BitsAndBytesConfig) -> None:
    """Copy the tokenizer and the templates, and write config.json."""
    source, target = Path(job.source), Path(job.target)
    for file in small_files(source):
        (target / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / file, target / file)
    kept = {name: value for name, value in published_config(source).items() if name != "torch_dtype"}
    config = kept | {
        "dtype": str(DTYPES[Precision(job.precision)]).removeprefix("torch."),
        SOURCE: job.named,
        "quantization_config": stored.to_dict(),
    }
    (target / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Do the ``Job`` in the first argument; the second is a file descriptor for what ``quantised_copy.py`` reads, a JSON object a line."""
    torch.set_num_threads(int(os.environ.get("HYDRAFT_CORES", 0)) or len(os.sched_getaffinity(0)))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with os.fdopen(int(arguments[1]), "w", encoding="utf-8") as events:

        def report(**event: Any) -> None:
            print(json.dumps(event), file=events, flush=True)

        try:
            write(Job(**json.loads(arguments[0])), report)
        except Exception as error:
            lines = (line.strip() for line in str(error).splitlines())
            report(error=next(filter(None, lines), type(error).__name__))
            return 1
    return 0
