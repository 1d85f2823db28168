"""The largest micro-batch that is of use for the examples of an epoch. No torch."""

from hydraft.errors import ConfigError

ALWAYS = 256
"""Micro-batches up to this size are allowed for any number of examples: what is missing in the last one is filled with empty rows."""

UNSURE = 16
"""How many times more examples there may be than the plan counts, which has no tokenizer."""


def largest(examples: int) -> int:
    """The largest micro-batch for an epoch of so many examples: all of them, up to a power of two."""
    return max(ALWAYS, 1 << max(0, examples - 1).bit_length())


def check(size: int, examples: int, estimated: bool = False) -> None:
    """Refuse a micro-batch in which most rows would be empty.

    Args:
        size: of the micro-batch.
        examples: of an epoch, on all ranks together.
        estimated: ``examples`` is the plan's estimate: what is only a little too large is left to the ranks.

    Raises:
        ConfigError: names the largest that is of use.
    """
    most = largest(examples)
    if size > most * (UNSURE if estimated else 1):
        about = "about " if estimated else ""
        raise ConfigError(
            f"train.micro_batch_size={size}: an epoch has {about}{examples:,} examples on all ranks together, and the other rows of a "
            f"micro-batch would be empty: use at most {most}"
        )
