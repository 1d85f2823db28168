"""The model section of the schema. No torch."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from hydraft.config.bounds import Effect, setting
from hydraft.config.choices import Hub, Init, Precision, Rope, Scale
from hydraft.config.train import AUTO


@dataclass
class ShapeConfig:
    """One published size of a model family; the names are those of its config.json."""

    path: str = MISSING
    """Name on the Hugging Face hub."""
    architecture: str = MISSING
    """Architecture whose constants (rotary positions, epsilon, …) it has: a key of ``architectures`` in ``models/families/``."""
    vocab_size: int = MISSING
    """Rows of the embedding matrix."""
    hidden_size: int = MISSING
    """Size of the hidden states."""
    intermediate_size: int = MISSING
    """Size of the feed-forward block."""
    num_hidden_layers: int = MISSING
    """Number of decoder layers."""
    num_attention_heads: int = MISSING
    """Query heads of a layer."""
    num_key_value_heads: int = MISSING
    """Key and value heads of a layer."""
    head_dim: int = MISSING
    """Size of an attention head."""
    tie_word_embeddings: bool = False
    """Whether the language-model head shares its weights with the embedding."""


@dataclass
class ModelConfig:
    """The model: where it comes from, its size and the data type of its weights."""

    name: str = MISSING
    """Short name, used in tables and on dashboards."""
    path: str = setting(MISSING, effect=Effect.names_code)
    """A local folder in the layout of Hugging Face, or a hub name such as ``Qwen/Qwen2.5-0.5B-Instruct``."""
    size: str | None = None
    """Which of ``sizes`` to use."""
    sizes: dict[str, ShapeConfig] = field(default_factory=dict)
    """Published sizes of the model family, by name."""
    init: Init = Init.pretrained
    """``pretrained``: read the weights. ``random``: draw random weights of the true shape (from ``seed``, kept in the cache)."""
    scale: Scale = Scale.full
    """``tiny``: with ``init=random``, shrink the shape to about a million parameters, for tests on any machine."""
    dtype: Precision = Precision.auto
    """Data type of frozen weights. ``auto``: that of ``train.precision``. ``bf16`` with ``train.precision=fp32`` halves their memory and
    still computes the adapter in fp32."""
    revision: str | None = setting(None, effect=Effect.names_code)
    """Commit, tag or branch on the hub. null: the default branch."""
    trust_remote_code: bool = setting(False, effect=Effect.acts)
    """Run Python code that comes with the checkpoint."""
    hub: Hub = setting(Hub.huggingface, effect=Effect.names_code)
    """Where a ``path`` that is no folder is downloaded from. ``modelscope`` needs the package of that name."""

    rope: Rope = Rope.none
    """Scaling of the rotary positions, for records that are longer than the model was trained for: ``yarn`` (arXiv:2309.00071), ``linear``
    (arXiv:2306.15595) or ``dynamic`` (only where a batch has longer records). ``none``: as in the model's config.json."""
    rope_factor: float = setting(1.0, at_least=1)
    """Times its original length that a model with ``rope`` is for."""
    cache_quantised: bool | str = setting(AUTO, one_of=(AUTO, True, False), allowed="auto, true or false")
    """With ``quant=nf4``: quantise the weights once, into the cache, instead of at each start. ``auto``: if the unquantised weights have
    1 GiB or more."""

    def kept_in(self, precision: Precision) -> Precision:
        """Data type of the weights in a run that computes in ``precision``."""
        return precision if self.dtype is Precision.auto else self.dtype

    @property
    def shape(self) -> ShapeConfig | None:
        """The shape of the chosen size; None for a model without ``sizes``, whose config.json has it."""
        return self.sizes.get(self.size or "")
