"""A rank that trains a small network with each kind of optimizer under ZeRO and, on the same data, with the library's own on whole tensors.

python optimizer_rank.py KIND:STAGE:STAGE2 … with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. Prints, by case: how far the weights
are from those of the library, and how far those of a run that was saved after half of the steps and resumed under STAGE2, as a share of
how far the weights have moved.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/support")]

import bitsandbytes  # noqa: E402
import deepspeed  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from conftest import config_of  # noqa: E402
from hydraft.checkpoint import optimizer_state  # noqa: E402
from hydraft.training.muon import Muon  # noqa: E402
from hydraft.training.optimizer import build  # noqa: E402

RATE, DECAY, BOUND, STEPS, HALF = 1e-2, 0.1, 0.5, 6, 3
Weights = dict[str, torch.Tensor]


class Net(torch.nn.Module):
    """An embedding, two hidden matrices, whose sizes two ranks do not divide, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(31, 67)
        self.up, self.down = torch.nn.Linear(67, 89), torch.nn.Linear(89, 67)
        self.head = torch.nn.Linear(67, 31, bias=False)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids)
        return torch.nn.functional.cross_entropy(self.head(hidden + self.down(torch.tanh(self.up(hidden)))), ids)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batches(steps: range) -> Iterator[torch.Tensor]:
    """The same ones on every rank, so that the mean of their gradients is the gradient of each."""
    for step in steps:
        yield torch.randint(31, (16,), generator=torch.Generator().manual_seed(step))


def plain(kind: str) -> Weights:
    """The weights by the library's optimizers on whole tensors, with torch's clipping."""
    model = net()
    named = dict(model.named_parameters())
    decayed = {name: p for name, p in named.items() if "bias" not in name}
    matrices = [p for name, p in decayed.items() if name in ("up.weight", "down.weight")]
    groups = [
        {"params": [*decayed.values()], "weight_decay": DECAY},
        {"params": [named["up.bias"], named["down.bias"]], "weight_decay": 0.0},
    ]
    made: list[Any]
    if kind == "muon":
        rest = [
            {**group, "params": [p for p in group["params"] if all(p is not one for one in matrices)]}
            for group in groups
        ]
        made = [
            torch.optim.Muon(matrices, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=RATE, fused=True),
        ]
    elif kind == "lion":
        made = [bitsandbytes.optim.Lion32bit(groups, lr=RATE, betas=(0.9, 0.99))]
    elif kind == "adafactor":
        made = [torch.optim.Adafactor(groups, lr=RATE)]
    elif kind == "adamw_8bit":
        made = [bitsandbytes.optim.AdamW8bit(groups, lr=RATE)]
    else:
        made = [torch.optim.AdamW(groups, lr=RATE, fused=True)]
    for ids in batches(range(STEPS)):
        model(ids).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), BOUND)
        for one in made:
            one.step()
            one.zero_grad()
    return {name: p.detach().clone() for name, p in named.items()}


def sharded(kind: str, stage: int, steps: range, saved: Path | None = None, save: Path | None = None) -> Weights:
    """The weights of an engine after these steps; ``saved`` is what it resumes from, ``save`` where it writes a checkpoint."""
    config = config_of(
        "lora=none",
        "quant=none",
        f"optimizer={kind}",
        f"optimizer.weight_decay={DECAY}",
        f"zero=stage{stage}",
        f"train.learning_rate={RATE}",
    )
    with deepspeed.zero.Init(
        enabled=stage == 3,
        config_dict_or_path={
            "train_micro_batch_size_per_gpu": 16,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 100},
        },
    ):
        model = net()
    if saved is not None:
        optimizer_state.load_weights(dict(model.named_parameters()), saved)
    decayed = {name for name, _ in model.named_parameters() if "bias" not in name}
    settings = {
        "train_micro_batch_size_per_gpu": 16, "gradient_clipping": BOUND, "steps_per_print": 2**31, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, **({"stage3_param_persistence_threshold": 100} if stage == 3 else {})},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=build(config, model, decayed), config=settings)
    parameters = dict(engine.module.named_parameters())
    if isinstance(engine.basic_optimizer, Muon):
        engine.basic_optimizer.shard(engine)
    if saved is not None:
        optimizer_state.load_optimizer(engine, parameters, saved, steps.start)
    for ids in batches(steps):
        engine.backward(engine(ids))
        engine.step()
    if save is not None:
        optimizer_state.save_optimizer(engine, parameters, save if dist.get_rank() == 0 else None)
        assert optimizer_state.adam_step(engine) == steps.stop
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=stage == 3):
        return {name: p.detach().clone() for name, p in parameters.items()}


def apart(one: Weights, other: Weights) -> float:
    return float(torch.stack([(one[name] - other[name]).norm() for name in one]).norm())


def main() -> None:
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    found, begin = {}, {name: p.detach() for name, p in net().named_parameters()}
    for case in sys.argv[1:]:
        kind, first, second = case.split(":")
        with tempfile.TemporaryDirectory() as scratch:
            folder: list[Any] = [scratch]
            dist.broadcast_object_list(folder, 0)
            place = Path(folder[0])
            reference, whole = plain(kind), sharded(kind, int(first), range(STEPS))
            sharded(kind, int(first), range(HALF), save=place)
            resumed = sharded(kind, int(second), range(HALF, STEPS), saved=place)
            moved = apart(reference, begin)
            found[case] = [apart(whole, reference) / moved, apart(resumed, whole) / moved]
            dist.barrier()
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
