"""The schema of a run: every setting, its type and its unit. No torch here.

A YAML file in ``conf/`` holds values, this file holds their meaning. The root is ``Config``, for
``train.py``; ``infer.py`` has its own in ``infer/config.py``. What a value may be is checked in ``checks.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from hydraft.config.choices import (
    Batching,
    Format,
    Init,
    Kernels,
    LoraMethod,
    Loss,
    Mode,
    Offload,
    Precision,
    QuantKind,
    Scale,
    Task,
    TrackerKind,
    TrainOn,
)
from hydraft.config.cluster import ClusterConfig
from hydraft.config.objective import ObjectiveConfig
from hydraft.config.sweep import SweepConfig
from hydraft.config.train import TrainConfig
from hydraft.errors import ConfigError


@dataclass
class ShapeConfig:
    """A published size of a family, in the words of its config.json."""

    path: str = MISSING
    """Its name on the hub."""
    architecture: str = MISSING
    """Whose constants (rotary positions, epsilon, …) it has: a name in ``models/shapes.py``."""
    vocab_size: int = MISSING
    """Rows of the embedding."""
    hidden_size: int = MISSING
    """Features of a token between layers."""
    intermediate_size: int = MISSING
    """Features inside the feed-forward block."""
    num_hidden_layers: int = MISSING
    """Decoder layers."""
    num_attention_heads: int = MISSING
    """Query heads a layer."""
    num_key_value_heads: int = MISSING
    """Key and value heads a layer."""
    head_dim: int = MISSING
    """Features of a head."""
    tie_word_embeddings: bool = False
    """Whether the head is the embedding."""


@dataclass
class ModelConfig:
    name: str = MISSING
    """Short name, used in tables and on dashboards."""
    path: str = MISSING
    """A local folder in the Hugging Face layout, or a hub name such as ``Qwen/Qwen2.5-0.5B-Instruct``."""
    size: str | None = None
    """Which of ``sizes``."""
    sizes: dict[str, ShapeConfig] = field(default_factory=dict)
    """What the family is published in."""
    init: Init = Init.pretrained
    """``pretrained`` reads the weights; ``random`` draws them (from ``seed``, kept in the cache) in the true shape."""
    scale: Scale = Scale.full
    """``tiny`` shrinks the shape of ``init=random`` to about a million parameters, for tests on any machine."""
    dtype: Precision = Precision.auto
    """What frozen weights are kept in; ``auto`` is train.precision. bf16 under fp32 halves them and keeps the adapter exact."""
    revision: str | None = None
    """Commit, tag or branch on the hub; null for the default branch."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""

    def kept_in(self, precision: Precision) -> Precision:
        """What the weights are kept in when a run computes in ``precision``."""
        return precision if self.dtype is Precision.auto else self.dtype

    @property
    def shape(self) -> ShapeConfig | None:
        """The chosen size; None where the model says of itself what it is."""
        return self.sizes.get(self.size or "")


@dataclass
class QuantConfig:
    kind: QuantKind = QuantKind.none
    """How the frozen weights are stored: ``none``, ``nf4`` (4-bit, QLoRA) or ``int8`` (LLM.int8())."""
    double_quant: bool = True
    """nf4: quantise the per-block constants too (saves about 0.37 bit a weight)."""


@dataclass
class LoraConfig:
    method: LoraMethod = LoraMethod.lora
    """``none`` trains every weight (full fine-tuning)."""
    r: int = 8
    """Rank of the update B·A."""
    alpha: float = 16
    """The update is scaled by alpha / r, for rslora by alpha / sqrt(r)."""
    dropout: float = 0.0
    """Probability that an input element of A is dropped in training."""
    bias: str = "none"
    """Which biases are trained: ``none``, ``all`` or ``lora_only``."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the linear layers that get an update; ``[all-linear]`` for all but the head."""

    @property
    def on_head(self) -> bool:
        """Whether the head gets one."""
        return any(target.rpartition(".")[2] == "lm_head" for target in self.target_modules)


@dataclass
class KernelsConfig:
    kind: Kernels = Kernels.torch
    """Whose kernels run the model: ``torch``, Liger's (``liger``) or Unsloth's (``unsloth``)."""
    loss: Loss = Loss.auto
    """``torch`` only: the loss of all trained tokens at once (``whole``), or, where the head is frozen, of 512 at a time (``chunked``): the
    logits are never there together. ``auto`` goes by the vocabulary."""


@dataclass
class ZeroConfig:
    stage: int = 2
    """What is sharded over ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too."""
    offload_optimizer: Offload = Offload.none
    """Where the optimizer's state lives and its step runs; ``cpu`` needs stage 1 or more."""
    offload_param: Offload = Offload.none
    """Where sharded weights rest between uses; ``cpu`` needs stage 3."""
    pin_memory: bool = True
    """Page-locked host memory for what is offloaded: faster copies, cannot be swapped out."""
    overlap_comm: bool = True
    """Reduce gradients while the backward pass goes on."""
    contiguous_gradients: bool = True
    """Copy gradients into one buffer as they appear, against fragmentation."""
    reduce_scatter: bool = True
    """Reduce-scatter in place of all-reduce for gradients."""
    reduce_bucket_size: int = 50_000_000
    """Gradient elements a reduction waits for."""
    allgather_partitions: bool = True
    """Stages 1 and 2: all-gather the updated weights, in place of broadcasts."""
    allgather_bucket_size: int = 50_000_000
    """Stages 1 and 2: elements gathered at once."""
    stage3_prefetch_bucket_size: int = 50_000_000
    """Stage 3: elements fetched ahead of use."""
    stage3_param_persistence_threshold: int = 100_000
    """Stage 3: a weight of fewer elements stays whole on every rank."""


@dataclass
class DataConfig:
    name: str = MISSING
    """Short name, used in tables and on dashboards."""
    train: str = MISSING
    """A .json (list), .jsonl or .parquet file, or a data set on the hub (``owner/name`` or ``owner/name:split``)."""
    mix: list[str] = field(default_factory=list)
    """More sources, each ``source*weight``: 0.5 takes half of its records an epoch, 2 takes each twice."""
    only: list[str] = field(default_factory=list)
    """Train and score only the records of these tasks, by their ``task`` key; ``[]`` for all records."""
    format: Format = Format.auto
    """The records' form: alpaca, messages, sharegpt or text; ``auto`` sees it from their keys."""
    train_on: TrainOn = TrainOn.all
    """Which of the assistant's turns are trained: ``all`` or the ``last``."""
    eval: str | None = None
    """Held-out records of the same form, scored before and after training; null for none."""
    template: str = "chat"
    """``chat`` for the model's own chat template, or a prompt with {instruction} and {input} in it."""
    max_length: int = 512
    """Tokens a record; a longer prompt loses tokens from its middle, a longer answer from its end."""
    batching: Batching = Batching.padding_free
    """``padding_free`` lays a micro-batch's documents end to end; ``padded`` fills each up to the longest."""
    packing: bool = False
    """Fill bins of ``max_length`` tokens with whole records; a micro-batch then counts bins."""
    group_by_length: bool = False
    """Records of like length come together: less padding where batches are padded, and ranks that wait less."""
    shuffle: bool = True
    """Draw a new order each epoch, from ``seed``; false keeps the file's order."""
    eval_limit: int | None = None
    """Score only so many held-out records, spread evenly over the file."""
    task: Task = Task.auto
    """Which scores the answers get; ``auto`` goes by each record's ``task`` key."""
    eval_max_new_tokens: int = 64
    """Tokens an answer may have when held-out records are scored."""


@dataclass
class TrackerConfig:
    kind: TrackerKind = TrackerKind.none
    """``wandb`` is online where a key is set up, offline otherwise; it never prompts. ``tensorboard``, ``mlflow`` and ``swanlab``
    have packages of their own to install."""
    project: str = "hydraft"
    """The project on the dashboard; MLflow's experiment."""
    group: str | None = None
    """What the dashboard groups runs by; null for the name and id of the sweep that the run belongs to."""
    tags: list[str] = field(default_factory=list)
    """Words to find the run by, beside model, quant, LoRA method and ZeRO stage."""
    upload: bool = False
    """wandb and MLflow: keep the trained adapter (or model) on the dashboard, too."""


@dataclass
class Config:
    """A training run."""

    mode: Mode = Mode.train
    """``train`` it, show its ``plan``, or ``preview`` its data as the model would see it."""
    resume: str | None = None
    """A run's folder, or ``last``, to go on with: its own config is taken, and what else is typed is changed in it."""
    seed: int = 42
    """Seeds the order of records, the adapter's first weights and dropout."""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.cluster.nodes * self.cluster.ranks_per_node

    @property
    def global_batch_size(self) -> int:
        """Records an optimizer step sees: micro-batch x accumulation x ranks."""
        return self.train.micro_batch_size * self.train.gradient_accumulation_steps * self.world_size


def saved(config: Config, leave_out: Sequence[str] = ()) -> str:
    """``config`` as YAML, with every value, and of the model's sizes the chosen one; without the sections ``leave_out``."""
    sizes = {size: shape for size, shape in config.model.sizes.items() if size == config.model.size}
    config = replace(config, model=replace(config.model, sizes=sizes))
    kept = [part.name for part in fields(config) if part.name not in leave_out]
    return OmegaConf.to_yaml(OmegaConf.masked_copy(OmegaConf.structured(config), kept))


def save_config(config: Config, path: Path) -> None:
    """Write ``config`` to a file, as ``saved`` has it."""
    path.write_text(saved(config), encoding="utf-8")


def load_config(path: Path) -> Config:
    """Read what ``save_config`` wrote.

    Raises:
        ConfigError: the file is not a run's config.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        config = OmegaConf.to_object(merged)
    except Exception as error:
        raise ConfigError(f"{path} is not a run's config: {str(error).splitlines()[0]}") from error
    assert isinstance(config, Config)
    return config
