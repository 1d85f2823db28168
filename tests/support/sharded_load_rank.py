"""A rank that loads models sharded, and compares each gathered parameter with plain transformers and bitsandbytes; prints JSON.

python sharded_load_rank.py "FOLDER DTYPE DOUBLE OFFLOAD" … with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; what is appended to an
argument is not used.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/support")]

import deepspeed  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # noqa: E402
from bitsandbytes.nn import Linear4bit  # noqa: E402
from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: E402
from transformers.integrations.deepspeed import HfDeepSpeedConfig  # noqa: E402

from hydraft.config.choices import Precision, QuantKind  # noqa: E402
from hydraft.config.model import ModelConfig  # noqa: E402
from hydraft.config.schema import QuantConfig  # noqa: E402
from hydraft.models import experts  # noqa: E402
from hydraft.models.load import load_base  # noqa: E402
from hydraft.models.quant import DTYPES  # noqa: E402


def plain(folder: str, dtype: torch.dtype, double: bool) -> Any:
    """The model as transformers loads it, quantised whole."""
    stored = "quantization_config" in json.loads(Path(folder, "config.json").read_text())
    settings = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_quant_storage": torch.uint8,
    }
    quant = {} if stored else {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **settings)}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **quant)


def same(ours: Any, theirs: Any) -> bool:
    """Whether a gathered 4-bit layer has the codes and the constants of another."""
    codes, state = ours.gathered()
    expected = theirs.weight.quant_state.as_dict(packed=True)
    found = state.as_dict(packed=True)
    described = next(name for name in expected if "bitsandbytes__" in name)  # names the type of the checkpoint
    return torch.equal(codes.view(-1), theirs.weight.data.view(-1).view(torch.uint8)) and all(
        torch.equal(found[name], value) for name, value in expected.items() if name != described
    )


def compared(case: str) -> dict[str, Any]:
    """Which parameters differ, how many were compared, and the bytes that this rank keeps."""
    folder, precision, double, offload = case.split()[:4]
    dtype, quant = DTYPES[Precision(precision)], QuantConfig(QuantKind.nf4, double == "double")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    if offload == "offload":
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    settings = {
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "train_micro_batch_size_per_gpu": 1,
    }
    active = HfDeepSpeedConfig(settings)
    model = load_base(ModelConfig(name="mine", path=folder), quant, Precision(precision))
    del active
    reference = plain(folder, dtype, quant.double_quant)
    kept = sum(parameter.ds_tensor.nbytes for parameter in model.parameters())
    differing, quantised, others = [], 0, 0
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        with deepspeed.zero.GatheredParameters([parameter]):
            if isinstance(layer, Linear4bit) and name.endswith(".weight"):
                quantised += 1
                equal = same(layer, reference.get_submodule(name.rpartition(".")[0]))
            elif experts.is_stacked(layer, last := name.rpartition(".")[2]):
                quantised += 1
                codes = quantize_4bit(
                    theirs[name].to(dtype), blocksize=64, compress_statistics=quant.double_quant, quant_type="nf4"
                )
                equal = torch.equal(experts.weight(layer, last), dequantize_4bit(*codes))
            else:
                others += 1
                equal = torch.equal(parameter, theirs[name].to(dtype))
        differing += [] if equal else [name]
    missing = sorted(theirs.keys() - dict(model.named_parameters()).keys())
    buffers = [name for name, one in model.named_buffers() if not torch.equal(one, reference.get_buffer(name))]
    whole = sum(value.nbytes for value in reference.state_dict().values())
    return {
        "differing": differing + missing + buffers, "quantised": quantised, "others": others, "kept": kept, "whole": whole,
    }  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    found = [compared(case) for case in sys.argv[1:]]
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, found)
    if dist.get_rank() == 0:
        print(json.dumps(everything))
    dist.destroy_process_group()
