"""A rank that trains a tiny model under ZeRO-3 and prints which weights DeepSpeed has gathered in its third micro-batch, as JSON.

python gathered_rank.py CASE CASE … with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. A case has overrides, and DeepSpeed's settings as
``stage3_NAME=VALUE``.
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
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus  # noqa: E402
from deepspeed.runtime.zero.partitioned_param_coordinator import (  # noqa: E402
    PartitionedParameterCoordinator as Coordinator,
)
from deepspeed.runtime.zero.partitioned_param_coordinator import iter_params  # noqa: E402
from transformers.integrations.deepspeed import HfDeepSpeedConfig  # noqa: E402

from conftest import config_of  # noqa: E402
from hydraft.models import prepare  # noqa: E402
from hydraft.models.load import load_trainable, trainable  # noqa: E402
from hydraft.system import hardware  # noqa: E402
from hydraft.training import deepspeed_ops  # noqa: E402
from hydraft.training.zero import deepspeed_config  # noqa: E402


def gathered(case: str) -> dict[str, int]:
    """The most elements of gathered weights in each part of the model, and all that were gathered."""
    words = case.split()
    config = config_of(
        "model.init=random", "model.scale=tiny", "zero=stage3", *(w for w in words if w[:7] != "stage3_")
    )
    machine = hardware.detect()
    deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine)
    os.environ.update(deepspeed_ops.environment(machine))
    settings = deepspeed_config(config)
    for word in words:
        if word.startswith("stage3_"):
            name, value = word.split("=")
            settings["zero_optimization"][name] = int(value)
    active = HfDeepSpeedConfig(settings)  # while it exists, load_base shards what it loads
    model: Any = load_trainable(dataclasses.replace(config, model=prepare.native(config.model, config.seed)))
    del active
    if config.train.recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    engine.train()
    names = {module: name for name, module in model.named_modules()}
    found = {"embedding": 0, "layers": 0, "head": 0, "total": 0}
    fetch, gather = Coordinator._fetch_sub_module_impl, Coordinator._PartitionedParameterCoordinator__all_gather_params

    def record(self: Any, module: Any, *rest: Any) -> None:
        fetch(self, module, *rest)
        if not any(True for _ in iter_params(module)):
            return
        here = (one for one in model.parameters() if one.ds_status is not ZeroParamStatus.NOT_AVAILABLE)
        live = sum(one.ds_numel for one in here if not one.ds_persist)
        name = names[module]
        part = "head" if "lm_head" in name else "embedding" if "embed" in name or "layers.0." in name else "layers"
        found[part] = max(found[part], live)

    def count(self: Any, params: Any, forward: bool) -> None:
        found["total"] += sum(one.ds_numel for one in params if one.ds_status is ZeroParamStatus.NOT_AVAILABLE)
        gather(self, params, forward)

    ids = torch.arange(9, 25)[None]
    for step in range(3):
        if step == 2:
            Coordinator._fetch_sub_module_impl = record
            Coordinator._PartitionedParameterCoordinator__all_gather_params = count
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    Coordinator._fetch_sub_module_impl = fetch
    Coordinator._PartitionedParameterCoordinator__all_gather_params = gather
    engine.destroy()
    return found


if __name__ == "__main__":
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    results = [gathered(case) for case in sys.argv[1:]]
    if dist.get_rank() == 0:
        print(json.dumps(results))
    dist.destroy_process_group()
