"""Whether the loss is computed in chunks of trained tokens, ``kernels.loss``. No torch.

``models/loss_chunked.py`` has the chunked loss.
"""

from hydraft.config.choices import Kernels, Loss
from hydraft.config.lora import LoraMethod
from hydraft.config.objective import ObjectiveKind
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.models.families.registry import has_plain_head, plain_heads

ROWS = 512
"""The most trained tokens of a chunk. Each chunk reads the whole head, so it must be large enough: ``python
bench/loss.py --rows 32`` finds such chunks a quarter slower than no chunks, and a GPU of the H100 class, with some 300 operations for each
byte that it reads, is bound by arithmetic from about 300 rows on (by its data sheet, not measured)."""

LEAST_VOCABULARY = 32_000
"""The smallest vocabulary for which ``auto`` uses chunks. ``bench/loss.py``, on a CPU: from here on chunks take 0.91 to 0.98 of the time and 0.09 to 0.68 of the
memory. Below it they are no slower there, but there is little memory to save, and the small kernels of a small vocabulary are not measured
on a GPU."""


def trains_head(config: Config) -> bool:
    """Whether the head's weight, or an adapter on it, is trained."""
    return config.lora.method is LoraMethod.none or config.lora.on_head


def chunked(config: Config, architecture: str, vocabulary: int) -> bool:
    """Whether the loss of a model with this ``model_type`` and vocabulary size is computed in chunks.

    Raises:
        ConfigError: ``kernels.loss=chunked``, and the head is not known to be a plain one.
    """
    known = has_plain_head(architecture)
    if config.kernels.loss is Loss.chunked and not known:
        raise ConfigError(
            f"kernels.loss=chunked: whether a model of type {architecture} changes its logits is not known "
            f"(supported: {', '.join(plain_heads())}): use kernels.loss=whole"
        )
    if config.kernels.loss is Loss.whole or trains_head(config) or config.train.label_smoothing:
        return False
    if config.objective.kind is not ObjectiveKind.sft:  # of two answers at once, and no kernel library has this loss
        return known
    if config.kernels.kind is not Kernels.torch:
        return False
    return known and (config.kernels.loss is Loss.chunked or vocabulary >= LEAST_VOCABULARY)
