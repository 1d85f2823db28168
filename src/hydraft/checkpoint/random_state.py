"""Saves and restores the random number generators of every rank: ``random.safetensors``. No pickle."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load as read
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file

from hydraft.models import exchange

FILE = "random.safetensors"


def current() -> dict[str, torch.Tensor]:
    """The states of this rank's random number generators, as integer tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, _ = np.random.get_state(legacy=True)
    assert version == 3 and gauss is None and name == "MT19937" and not has_gauss
    found = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.append(keys, position).astype(np.int64)),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def save(folder: Path | None) -> None:
    """Write the states of all ranks. Every rank must call it; the one with a ``folder`` writes."""
    shares = exchange.all_gather_bytes(to_bytes(current()))
    if folder is not None:
        states = [read(share or b"") for share in shares]
        save_file(
            {f"{rank}/{name}": tensor for rank, state in enumerate(states) for name, tensor in state.items()},
            folder / FILE,
        )


def load(folder: Path) -> bool:
    """Restore the states of this rank; False, with no change, if the checkpoint is of another number of ranks."""
    saved = read(exchange.broadcast_bytes((folder / FILE).read_bytes() if dist.get_rank() == 0 else b"") or b"")
    if len({name.partition("/")[0] for name in saved}) != dist.get_world_size():
        return False
    rank = dist.get_rank()
    torch.set_rng_state(saved[f"{rank}/torch"])
    random.setstate((3, tuple(saved[f"{rank}/python"].tolist()), None))
    words = saved[f"{rank}/numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words[:-1], int(words[-1]), 0, 0.0))
    if f"{rank}/cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved[f"{rank}/cuda"])
    return True
