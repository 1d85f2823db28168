"""Whether a run takes its loss some trained tokens at a time, ``kernels.loss``. No torch.

What is taken so is written in ``models/head.py``.
"""

from hydraft.config.choices import Kernels, LoraMethod, Loss
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.models.families.registry import has_plain_head, plain_heads

ROWS = 512
"""The most trained tokens whose logits are there together. Each chunk reads the whole head and must be worth it: ``python
bench/loss.py --rows 32`` finds chunks a quarter slower than the whole, and a card of the H100 class, with some 300 operations for each
byte that it reads, is bound by arithmetic from about 300 rows on (by its data sheet, not measured)."""

LEAST_VOCABULARY = 32_000
"""Where ``auto`` begins to chunk. ``bench/loss.py``, on a CPU: from here on chunks take 0.91 to 0.98 of the time and 0.09 to 0.68 of the
memory. Below it they are no slower there, but there is little memory to save, and the small kernels of a small vocabulary are not measured
on a card."""


def trains_head(config: Config) -> bool:
    """Whether the head's weight, or an adapter on it, learns."""
    return config.lora.method is LoraMethod.none or config.lora.on_head


def chunked(config: Config, architecture: str, vocabulary: int) -> bool:
    """Whether a model of that ``model_type`` and so many tokens in its vocabulary takes its loss in chunks.

    Raises:
        ConfigError: it is asked to, and its head is not known to be a plain one.
    """
    known = has_plain_head(architecture)
    if config.kernels.loss is Loss.chunked and not known:
        raise ConfigError(
            f"kernels.loss=chunked: what a model of type {architecture} does to its logits is not known here "
            f"(it is for {', '.join(plain_heads())}): use kernels.loss=whole"
        )
    if config.kernels.kind is not Kernels.torch or config.kernels.loss is Loss.whole or trains_head(config):
        return False
    return known and (config.kernels.loss is Loss.chunked or vocabulary >= LEAST_VOCABULARY)
