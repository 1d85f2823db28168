"""A rank that loads models which start from an adapter, and compares each gathered tensor with the file's; prints JSON.

python starting_rank.py "lora.start=FOLDER OVERRIDES" … with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
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
from safetensors.torch import load_file  # noqa: E402
from transformers.integrations.deepspeed import HfDeepSpeedConfig  # noqa: E402

from conftest import config_of  # noqa: E402
from hydraft.checkpoint import starting_adapter, weights  # noqa: E402
from hydraft.models import prepare  # noqa: E402
from hydraft.models.load import load_trainable, trainable  # noqa: E402
from hydraft.models.quant import DTYPES  # noqa: E402
from hydraft.runs import start  # noqa: E402
from hydraft.system import hardware  # noqa: E402
from hydraft.training import deepspeed_ops  # noqa: E402
from hydraft.training.zero import deepspeed_config  # noqa: E402


def compared(overrides: list[str]) -> dict[str, Any]:
    """By moment, the tensors of the file that are not those of the model; how many there are, and how many are sharded."""
    config, _ = start.settled(config_of(*overrides), overrides)
    config = dataclasses.replace(config, zero=dataclasses.replace(config.zero, stage3_param_persistence_threshold=0))
    machine = hardware.detect()
    deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine)
    os.environ.update(deepspeed_ops.environment(machine))
    settings = {**deepspeed_config(config), "train_batch_size": config.global_batch_size}
    active = HfDeepSpeedConfig(settings) if config.zero.stage == 3 else None
    model: Any = load_trainable(dataclasses.replace(config, model=prepare.native(config.model, config.seed)))
    del active
    assert config.lora.start is not None
    starting_adapter.load(model, config.lora.start)
    expected = load_file(Path(config.lora.start, weights.ADAPTER_FILE))

    def differing(dtype: torch.dtype | None) -> list[str]:
        found = weights.gather(model, starting_adapter.saved_names(model))
        if dist.get_rank() != 0:
            return []
        assert set(found) == set(expected)
        return [
            name for name, value in expected.items() if not torch.equal(found[name], value.to(dtype or found[name]))
        ]

    loaded = differing(None)
    parameters = list(trainable(model).values())
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(parameters, lr=1e-3), config=settings)
    kept = DTYPES[config.train.precision]
    result = {"loaded": loaded, "in the engine": differing(kept), "count": len(expected), "sharded": []}
    shards = [parameter for parameter in trainable(model).values() if hasattr(parameter, "ds_id")]
    if shards:  # load replaces sharded weights too
        with torch.no_grad(), deepspeed.zero.GatheredParameters(shards, modifier_rank=0):
            for parameter in shards:
                parameter.zero_()
        zeros = differing(kept)
        assert dist.get_rank() != 0 or len(zeros) == len(expected), zeros
        starting_adapter.load(model, config.lora.start)
        result["sharded"] = differing(kept)
    engine.destroy()
    return result | {"shards": len(shards)}


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    results = [compared(one.split()) for one in sys.argv[1:]]
    if dist.get_rank() == 0:
        print(json.dumps(results))
    dist.destroy_process_group()
