"""A rank that prints how many bytes a tiny model keeps allocated under DeepSpeed, as JSON, for several configurations.

python engine_rank.py OVERRIDES OVERRIDES … with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
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
from transformers import Trainer  # noqa: E402

from conftest import config_of  # noqa: E402
from hydraft.models import prepare  # noqa: E402
from hydraft.models.load import load_trainable, trainable  # noqa: E402
from hydraft.system import hardware  # noqa: E402
from hydraft.training import deepspeed_ops  # noqa: E402
from hydraft.training.muon import Muon  # noqa: E402
from hydraft.training.optimizer import build  # noqa: E402
from hydraft.training.zero import deepspeed_config  # noqa: E402


def bytes_of(tensors: Any) -> int:
    """Bytes of distinct storages, without scalars (AdamW's step)."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.dim() > 0}
    return sum(storages.values())


def allocated(overrides: str) -> dict[str, int]:
    """Bytes allocated after an optimizer step."""
    config = config_of("model=llama3", "model.init=random", "model.scale=tiny", *overrides.split())
    machine = hardware.detect()
    deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine)
    os.environ.update(deepspeed_ops.environment(machine))
    deepspeed_ops.cache_cpu_info()
    model = load_trainable(dataclasses.replace(config, model=prepare.native(config.model, config.seed)))
    parameters = list(trainable(model).values())
    made = build(config, model, set(Trainer.get_decay_parameter_names(None, model)))  # type: ignore[arg-type]
    settings = {**deepspeed_config(config), "train_batch_size": config.global_batch_size}
    engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=made, config=settings)
    if isinstance(made, Muon):
        made.shard(engine)
    for _ in range(config.train.gradient_accumulation_steps):
        ids = torch.randint(9, 99, (1, 32))
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    inner = getattr(optimizer, "optimizer", optimizer)
    moments = [t for state in inner.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    masters = {"fp32_groups": True, "single_partition_of_fp32_groups": False, "fp32_partitioned_groups_flat": False}
    master = [
        t
        for name, nested in masters.items()
        for group in getattr(optimizer, name, [])
        for t in (group if nested else [group])
    ]
    own = {t.untyped_storage().data_ptr() for t in getattr(optimizer, "fp16_partitioned_groups_flat", [])}
    flat = getattr(optimizer, "grad_partitions_flat_buffer", None)
    found = {
        "optimizer": bytes_of(moments) + bytes_of(t for t in master if t.untyped_storage().data_ptr() not in own),
        "trained": sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters),
        "gradients": 0 if flat is None else bytes_of([flat]),
    }
    engine.destroy()
    return found


if __name__ == "__main__":
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    results = [allocated(overrides) for overrides in sys.argv[1:]]
    if dist.get_rank() == 0:
        print(json.dumps(results))
    dist.destroy_process_group()
