"""Rules about the model section. No torch."""

from hydraft.config.choices import Kernels, Rope
from hydraft.config.rule import value

MODEL = [
    value(
        lambda c: c.model.rope is not Rope.none and c.model.rope_factor == 1,
        "model.rope={c.model.rope.value} must have a factor: use model.rope_factor=4, for example, for four times the original length",
    ),
    value(
        lambda c: c.model.rope is Rope.none and c.model.rope_factor != 1,
        "model.rope_factor={c.model.rope_factor:g} is read by model.rope: use model.rope=yarn, or leave it out",
    ),
    value(
        lambda c: c.model.rope is not Rope.none and c.kernels.kind is Kernels.unsloth,
        "kernels=unsloth has its own rotary positions, without model.rope={c.model.rope.value}: use kernels=liger or kernels=torch",
        source="unsloth 2026.10.7, models/llama.py, LlamaExtendedRotaryEmbedding",
    ),
]
