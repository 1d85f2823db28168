"""A rank that trains a step under ZeRO-3 and prints the bytes of its swap files, of their buffers and of hpZ's second copy, as JSON.

python swap_rank.py FOLDER CASE CASE … with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. The files are in FOLDER/CASE NUMBER/RANK.
"""

import dataclasses
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
from deepspeed.ops.adam import DeepSpeedCPUAdam  # noqa: E402
from transformers.integrations.deepspeed import HfDeepSpeedConfig  # noqa: E402

from conftest import config_of  # noqa: E402
from hydraft.config.choices import Offload  # noqa: E402
from hydraft.models import prepare  # noqa: E402
from hydraft.models.load import load_trainable, trainable  # noqa: E402
from hydraft.system import hardware  # noqa: E402
from hydraft.training import deepspeed_ops  # noqa: E402
from hydraft.training.zero import deepspeed_config  # noqa: E402


def measured(case: str, folder: Path) -> dict[str, int]:
    """The bytes of this rank after an optimizer step."""
    config = config_of("zero.nvme_path=/var/tmp" if "nvme" in case else "seed=42", *case.split())
    machine = hardware.detect()
    deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine)
    os.environ.update(deepspeed_ops.environment(machine))
    deepspeed_ops.cache_cpu_info()
    folder.mkdir(parents=True)
    settings = deepspeed_config(config, folder)
    active = HfDeepSpeedConfig(settings)  # while it exists, load_base shards what it loads
    model: Any = load_trainable(dataclasses.replace(config, model=prepare.native(config.model, config.seed)))
    del active
    learns = trainable(model)
    matrices = [one for one in learns.values() if len(one.ds_shape if hasattr(one, "ds_shape") else one.shape) > 1]
    vectors = [one for one in learns.values() if all(one is not other for other in matrices)]
    groups = [{"params": group} for group in (matrices, vectors) if group]
    adam = torch.optim.AdamW if config.zero.offload_optimizer is Offload.none else DeepSpeedCPUAdam
    engine, zero, *_ = deepspeed.initialize(model=model, optimizer=adam(groups, lr=1e-3), config=settings)
    ids = torch.arange(9, 25)[None]
    for _ in range(config.train.gradient_accumulation_steps):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    files = {file: file.stat().st_size for file in folder.rglob("*.swp")}
    swappers = [zero.optimizer_swapper.swap_buffer_manager.all_buffers] if zero.optimizer_swapper else []
    weights = next(model.parameters()).nvme_swapper
    if weights is not None:
        swappers += [[weights.buffers, weights.partitioned_swap_buffer]]
    if weights is None:
        engine.backward(engine(input_ids=ids, labels=ids).loss)  # hpZ's second copy of what is trained is made again
    copies = (one.ds_secondary_tensor for one in model.parameters() if one.ds_secondary_tensor is not None)
    found = {
        "weights": sum(size for file, size in files.items() if "optimizer" not in file.parts),
        "optimizer": sum(size for file, size in files.items() if "optimizer" in file.parts),
        "buffers": sum(buffer.numel() * buffer.element_size() for group in swappers for buffer in group),
        "second": sum(one.numel() * one.element_size() for one in copies),
    }
    engine.destroy()
    return found


if __name__ == "__main__":
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    place = Path(sys.argv[1]) / str(dist.get_rank())
    results = [measured(case, place / str(number)) for number, case in enumerate(sys.argv[2:])]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, results)
    if dist.get_rank() == 0:
        print(json.dumps(gathered))
    dist.destroy_process_group()
