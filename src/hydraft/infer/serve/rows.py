"""The rows of a batch by adapter, as index tensors that are made once per batch and used by every layer.

Indexing with a Python list makes a new tensor, and on a GPU a copy that the host waits for, in each layer and for each adapter.
Here it is one copy per batch, and none if all rows use the same adapter.
"""

import torch


class Rows:
    """The rows of a batch by adapter."""

    def __init__(self, adapters: list[str]) -> None:
        """``adapters``: the adapter name of each row, in order."""
        self.count = len(adapters)
        self._where: dict[str, list[int]] = {}
        for row, name in enumerate(adapters):
            self._where.setdefault(name, []).append(row)
        self._on: dict[torch.device, dict[str, torch.Tensor | None]] = {}

    @property
    def adapters(self) -> list[str]:
        """The adapters that have a row."""
        return list(self._where)

    def on(self, device: torch.device) -> dict[str, torch.Tensor | None]:
        """The row indices of each adapter; None for all rows. On a GPU they are made on the stream that uses them."""
        if device not in self._on:
            if len(self._where) == 1:
                self._on[device] = dict.fromkeys(self._where)
            else:
                order = [row for rows in self._where.values() for row in rows]
                parts = on_device(order, torch.long, device).split([len(rows) for rows in self._where.values()])
                self._on[device] = dict(zip(self._where, parts, strict=True))
        return self._on[device]


def on_device(values: list[int] | list[list[float]], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of ``values`` on ``device``, copied without synchronisation."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)
