"""Interprets CUDA_VISIBLE_DEVICES as CUDA does (CUDA C++ programming guide, CUDA environment variables). No torch."""

import re
from collections.abc import Iterator, Sequence

from hydraft.system.driver.card import Card, Gpu

NO_CARD = ("", "-1", "NoDevFiles")
"""Values of users and of Slurm that mean no GPU."""


def chosen(cards: Sequence[Card], variable: str | None) -> tuple[tuple[Gpu, ...], str]:
    """The devices that CUDA shows a process, in its order, and what is wrong with the selection, if anything.

    CUDA shows a process at most one MIG slice, and so does this: the first, if there is no whole card.

    Args:
        cards: in nvidia-smi's order.
        variable: CUDA_VISIBLE_DEVICES; None if it is not set.
    """
    if variable is None:
        devices = [device for card in cards for device in _devices(card)[:1]]
    else:
        devices = _named(cards, variable)
        if not devices and cards and variable.strip() not in NO_CARD:
            numbers = "0" if len(cards) == 1 else f"0 to {len(cards) - 1}"
            return (
                (),
                f"CUDA_VISIBLE_DEVICES={variable}: no GPU has this number or name; use {numbers}, or names from nvidia-smi -L",
            )
    silent = [(gpu, failure) for gpu, failure in devices if failure]
    if silent:
        gpu, failure = silent[0]
        others = ",".join(str(one.index) for one, failed in devices if not failed and not one.is_slice)
        instead = f", or leave it out: CUDA_VISIBLE_DEVICES={others}" if others else ""
        return (), f"card {gpu.index} does not respond ({failure}): restart the machine{instead}"
    whole = [gpu for gpu, _ in devices if not gpu.is_slice]
    return tuple(whole or [gpu for gpu, _ in devices][:1]), ""


def _devices(card: Card) -> list[tuple[Gpu, str]]:
    """The devices of a card, each with the reason why it does not respond."""
    return [(card.gpu, card.failure)] if card.slices is None else [(part, "") for part in card.slices]


def _named(cards: Sequence[Card], variable: str) -> list[tuple[Gpu, str]]:
    """The devices listed, up to the first entry that matches none; if a device is listed twice, none at all."""
    found: list[tuple[Gpu, str]] = []
    for entry in variable.split(","):
        device = _one(cards, entry.strip())
        if device is None:
            break
        if device in found:
            return []
        found.append(device)
    return found


def _one(cards: Sequence[Card], entry: str) -> tuple[Gpu, str] | None:
    """The device of an entry: a number, which letters may follow, or the beginning of a UUID."""
    if (number := re.match(r"\+?\d+", entry)) is not None:
        index = int(number[0])
        return next(iter(_devices(cards[index])), None) if index < len(cards) else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    matching = list(_beginning(cards, entry))
    return matching[0] if len(matching) == 1 else None


def _beginning(cards: Sequence[Card], name: str) -> Iterator[tuple[Gpu, str]]:
    for card in cards:
        if card.gpu.uuid.startswith(name):
            yield from _devices(card)[:1]
        for device in _devices(card):
            if device[0].is_slice and device[0].uuid.startswith(name):
                yield device
