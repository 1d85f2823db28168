"""A rank that trains adapters of each variant and prints their losses and what a saved one computes on the original base, as JSON.

python lora_rank.py OVERRIDES OVERRIDES … with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/support")]

import deepspeed  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from transformers.integrations.deepspeed import HfDeepSpeedConfig  # noqa: E402

from conftest import config_of  # noqa: E402
from hydraft.checkpoint import weights  # noqa: E402
from hydraft.models import lora_init  # noqa: E402
from hydraft.models.load import load_base, load_tokenizer, load_trainable, trainable  # noqa: E402
from hydraft.models.shapes import planned_config  # noqa: E402
from hydraft.plan.parameters import layout, trained_in  # noqa: E402
from hydraft.system import hardware  # noqa: E402
from hydraft.training import deepspeed_ops  # noqa: E402
from hydraft.training.zero import deepspeed_config  # noqa: E402

STEPS = 3


def trained(overrides: str) -> dict[str, Any]:
    """Losses of steps on the same tokens, and how far the saved adapter is from the trained model."""
    config = config_of(*overrides.split())
    machine = hardware.detect()
    deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine)
    os.environ.update(deepspeed_ops.environment(machine))
    settings = {**deepspeed_config(config), "train_batch_size": config.global_batch_size, "gradient_clipping": 0.0}
    active = HfDeepSpeedConfig(settings) if config.zero.stage == 3 else None
    model: Any = load_trainable(config)
    del active
    folds = config.lora.variant.changes_base and lora_init.first(model) is None
    initial = weights.gather(model, trainable(model)) if folds else None
    parameters = list(trainable(model).values())
    frozen = sum(
        getattr(value, "ds_numel", value.numel())
        for name, value in lora_init.saved(model).items()
        if not value.requires_grad
    )
    frozen += sum(getattr(value, "ds_numel", value.numel()) for value in (lora_init.first(model) or {}).values())
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(parameters, lr=1e-3, eps=1e-5), config=settings
    )
    losses = []
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(9, 99, (STEPS, 2, 24), generator=generator)
    mine = slice(dist.get_rank(), dist.get_rank() + 1) if dist.get_world_size() == 2 else slice(0, 2)
    for step in rows:
        loss = engine(input_ids=step[mine], labels=step[mine]).loss
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / dist.get_world_size())
    model.eval()
    with torch.no_grad():
        ours = engine(input_ids=rows[0]).logits.float()
    known = layout(planned_config(config.model) or {})
    assert known is not None
    counted = trained_in(known, config)
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    place = Path(folder[0]) / "adapter"
    weights.save(model, load_tokenizer(config.model), place, True, weights.Origin(initial))
    apart = 0.0
    if config.zero.stage != 3 and dist.get_rank() == 0:
        apart = far(config, place, rows[0], ours)
    engine.destroy()
    if config.zero.stage == 3:
        apart = (
            far(dataclasses.replace(config, zero=dataclasses.replace(config.zero, stage=2)), place, rows[0], ours)
            if dist.get_rank() == 0
            else 0
        )
    dist.barrier()
    return {
        "losses": losses, "apart": apart, "trained": sum(getattr(p, "ds_numel", p.numel()) for p in parameters), "frozen": frozen,
        "planned": [counted.count, sum(counted.frozen) + counted.shared],
    }  # fmt: skip


def far(config: Any, place: Path, ids: torch.Tensor, ours: torch.Tensor) -> float:
    """The largest difference of a logit of the saved adapter over the original base, as plain peft loads it."""
    base = load_base(config.model, config.quant, config.train.precision)
    loaded = peft.PeftModel.from_pretrained(base, str(place)).eval()
    with torch.no_grad():
        return float((loaded(input_ids=ids).logits.float() - ours).abs().max())


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    results = [trained(one) for one in sys.argv[1:]]
    if dist.get_rank() == 0:
        print(json.dumps(results))
    dist.destroy_process_group()
