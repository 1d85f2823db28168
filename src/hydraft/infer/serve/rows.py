"""Which adapter each row of a batch is read with, as index tensors: made once a batch, used by every layer.

A Python list as an index is a tensor made anew, and on a card a copy that the host waits for, in each layer and for each
adapter. These are one copy a batch, and none where all rows are one adapter's.
"""

import torch


class Rows:
    """The rows of a batch by adapter."""

    def __init__(self, adapters: list[str]) -> None:
        """``adapters``: of each row in order, as peft calls it."""
        self.count = len(adapters)
        self._where: dict[str, list[int]] = {}
        for row, name in enumerate(adapters):
            self._where.setdefault(name, []).append(row)
        self._on: dict[torch.device, dict[str, torch.Tensor | None]] = {}

    @property
    def adapters(self) -> list[str]:
        """Each that has a row."""
        return list(self._where)

    def on(self, device: torch.device) -> dict[str, torch.Tensor | None]:
        """The rows of each adapter; None for all of them. On a card they are made on the stream that is about to use them."""
        if device not in self._on:
            if len(self._where) == 1:
                self._on[device] = dict.fromkeys(self._where)
            else:
                order = [row for rows in self._where.values() for row in rows]
                parts = on_device(order, torch.long, device).split([len(rows) for rows in self._where.values()])
                self._on[device] = dict(zip(self._where, parts, strict=True))
        return self._on[device]


def on_device(values: list[int] | list[list[float]], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of ``values`` on ``device``, without waiting for what runs there."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)
