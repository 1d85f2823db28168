"""Dropout of a member's rows, with the random numbers that the member would draw alone."""

import torch


def fill(mask: torch.Tensor, dropout: float, stream: torch.Generator | None) -> None:
    """Set ``mask`` to what dropout multiplies rows of its shape by, drawn as torch's dropout draws it."""
    if mask.device.type == "cpu":
        mask.bernoulli_(1 - dropout, generator=stream)
    else:
        with drawing_from(stream):  # torch's kernel for GPUs takes no generator
            mask.copy_(torch.native_dropout(mask, dropout, True)[1])
    mask.div_(1 - dropout)


class drawing_from:
    """While the block runs, torch's own generator continues a member's stream."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator

    def __enter__(self) -> None:
        if self.generator is not None:
            self.own = _default(self.generator.device)
            self.before = self.own.get_state()
            self.own.set_state(self.generator.get_state())

    def __exit__(self, *_: object) -> None:
        if self.generator is not None:
            self.generator.set_state(self.own.get_state())
            self.own.set_state(self.before)


def _default(device: torch.device) -> torch.Generator:
    return torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index or 0]
