"""EVA's first weights: A along the principal directions of the inputs that each layer gets for training records (arXiv:2410.07170).

peft's incremental decomposition reads batches until no direction changes any more. Every rank reads the same records, so that all have the
same weights; those of rank 0 are broadcast, since the last bits of a decomposition may differ.
"""

from typing import Any

import torch
from peft import initialize_lora_eva_weights
from torch.nn.utils.rnn import pad_sequence

from hydraft.config.schema import Config
from hydraft.data.encoded import Encoded
from hydraft.models import lora_init

RECORDS = 512
"""The most records that are read, before they are read again."""


def initialise(model: Any, encoded: Encoded, config: Config, device: torch.device) -> None:
    """Give the layers' A their first weights. The model is moved to ``device``, where it will be trained.

    The records are drawn with ``seed``, and read in batches with at least twice as many tokens as ``lora.r``.
    """
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(encoded), generator=generator)[:RECORDS].tolist()
    size = max(config.train.micro_batch_size, 2)
    batches = [_batch(encoded, chosen[start : start + size]) for start in range(0, len(chosen), size)]
    model.to(device)
    initialize_lora_eva_weights(
        model, batches, forward_fn=_forward(device), gather_distributed_inputs=False, show_progress_bar=False
    )
    lora_init.share(model)


def _batch(encoded: Encoded, records: list[int]) -> dict[str, torch.Tensor]:
    """Padded records, (B, T)."""
    rows = [torch.as_tensor(encoded[record]["input_ids"]) for record in records]
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def _forward(device: torch.device) -> Any:
    return lambda model, inputs: model(**{name: value.to(device) for name, value in inputs.items()})
