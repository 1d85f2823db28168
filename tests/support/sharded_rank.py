"""A rank that trains tiny models under ZeRO-3 and prints which gathered weights outlive the forward pass, as JSON.

python sharded_rank.py OVERRIDES OVERRIDES … with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/support")]

import deepspeed  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from transformers.integrations.deepspeed import HfDeepSpeedConfig  # noqa: E402

from conftest import config_of  # noqa: E402
from hydraft.models import prepare  # noqa: E402
from hydraft.models.load import load_trainable, trainable  # noqa: E402
from hydraft.system import hardware  # noqa: E402
from hydraft.training import deepspeed_ops  # noqa: E402
from hydraft.training.zero import deepspeed_config  # noqa: E402

REUSE = "reuse="
"""Prefix of a case's stage3_max_reuse_distance in elements; 0 by default, since tiny models reuse weights soon."""


def nodes(loss: torch.Tensor) -> Iterator[Any]:
    """Every node of the autograd graph below ``loss``."""
    stack, seen = [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [before for before, _ in node.next_functions]


def kept_by_graph(loss: torch.Tensor) -> int:
    """Bytes of the 4-bit weights that bitsandbytes' nodes keep as plain attributes."""
    found = {}
    for node in nodes(loss):
        if "MatMul4Bit" in type(node).__name__:
            for tensor in getattr(node, "tensors", ()):
                if tensor is not None:
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


def trained(overrides: list[str], sharded: bool) -> dict[str, Any]:
    """Two steps: bytes of linear weights left after each forward pass, losses, and a hash of the trained weights."""
    reuse = next((int(one.removeprefix(REUSE)) for one in overrides if one.startswith(REUSE)), 0)
    overrides = [one for one in overrides if not one.startswith(REUSE)]
    config = config_of("model.init=random", "model.scale=tiny", "zero=stage3", "train.micro_batch_size=2", *overrides)
    config = dataclasses.replace(config, zero=dataclasses.replace(config.zero, stage3_param_persistence_threshold=0))
    machine = hardware.detect()
    deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine)
    os.environ.update(deepspeed_ops.environment(machine))
    settings = {**deepspeed_config(config), "train_batch_size": config.global_batch_size}
    section = prepare.native(config.model, config.seed)
    # While it exists, transformers and load_base shard what they load; without it DeepSpeed shards the whole model afterwards.
    active = HfDeepSpeedConfig(settings) if sharded else None
    model: Any = load_trainable(dataclasses.replace(config, model=section))
    del active
    gathered: dict[str, tuple[StorageWeakRef, int]] = {}

    def record(name: str) -> Any:
        def hook(module: torch.nn.Module, *_: Any) -> None:
            storage = module.weight.data.untyped_storage()
            assert storage.nbytes(), name
            gathered[name] = StorageWeakRef(storage), storage.nbytes()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lora_" not in name:
            module.register_forward_hook(record(name))  # runs before DeepSpeed's hook, which frees the weight
    if config.train.recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = list(trainable(model).values())
    settings["zero_optimization"] |= {"stage3_max_reuse_distance": reuse, "stage3_prefetch_bucket_size": 0}
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(parameters, lr=1e-2), config=settings)
    engine.train()
    alive, graph, losses = [], [], []
    for step in range(2):
        torch.manual_seed(step)
        ids = torch.randint(9, 99, (2, 24))
        loss = engine(input_ids=ids, labels=ids).loss
        alive.append(sum(size for reference, size in gathered.values() if not reference.expired()))
        graph.append(kept_by_graph(loss))
        losses.append(loss.item())
        engine.backward(loss)
        engine.step()
    digest = hashlib.sha256()
    for parameter in parameters:
        with deepspeed.zero.GatheredParameters([parameter]):
            digest.update(parameter.detach().view(torch.uint8).numpy().tobytes())
    everything = sum(size for _, size in gathered.values())
    engine.destroy()
    return {"alive": alive, "graph": graph, "of": everything, "losses": losses, "weights": digest.hexdigest()}


if __name__ == "__main__":
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    results = []
    for one in sys.argv[1:]:
        results.append({"sharded": trained(one.split(), True)})
        if "quant=nf4" in one.split():
            results[-1]["bitsandbytes"] = trained(one.split(), False)
    if dist.get_rank() == 0:
        print(json.dumps(results))
    dist.destroy_process_group()
