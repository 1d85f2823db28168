"""The schema of infer.py: every setting, its type and its unit. What a value may be is checked in ``checks.py``. No torch."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from hydraft.config.choices import ExportKind, Format, InferMode, Layout, Precision, QuantKind, Task
from hydraft.config.serve import ServeConfig


@dataclass
class ProcessesConfig:
    """The part of training's cluster section that is about one machine."""

    nodes: int = 1
    """Machines: this one."""
    ranks_per_node: int = 1
    """Processes, one a GPU."""


@dataclass
class StoredConfig:
    """Training's quant section."""

    kind: QuantKind | None = None
    """``none``, ``nf4`` or ``int8``; null as in training."""
    double_quant: bool = True
    """nf4: the per-block constants are quantised too."""


@dataclass
class ExportConfig:
    kind: ExportKind = ExportKind.merged
    """``merged``: a model that needs nothing else; ``adapter``: the adapter alone, for servers that load it over its base."""
    layout: Layout = Layout.native
    """``native`` to transformers, or as the family was ``published`` (ChatGLM2)."""
    dtype: Precision = Precision.auto
    """Of merged weights; ``auto`` is the base checkpoint's own."""


@dataclass
class InferConfig:
    """A use of what was trained."""

    mode: InferMode = InferMode.generate
    """``generate`` answers one prompt, ``chat`` talks in the terminal, ``batch`` answers a file, ``serve`` answers
    requests over HTTP as OpenAI does, ``export`` writes a model folder."""
    run: Any = MISSING
    """A run's folder, ``last`` for the newest below outputs/, a folder with an adapter or a model in it, or several adapters of
    one base: ``[a,b]``, or with names ``{x: a, y: b}``."""
    adapter: str | None = None
    """Which of several adapters answers; null for the first."""
    prompt: str | None = None
    """generate: what is asked, as plain text."""
    system: str | None = None
    """A system turn ahead of the prompt."""
    input: str | None = None
    """batch: a .json list, .jsonl or .parquet file of prompts, or of records in a form that training reads."""
    format: Format = Format.auto
    """batch: the records' form, as data.format has it."""
    output: str | None = None
    """batch: the .jsonl file of answers; export: the folder to make."""
    batch_size: int = 16
    """batch: prompts at a time."""
    cluster: ProcessesConfig = field(default_factory=ProcessesConfig)
    """batch: ``cluster=1x4`` is four processes on this machine."""
    task: Task = Task.auto
    """batch: which scores the answers get, as data.task has it."""
    base: str | None = None
    """Where the adapter's base model is now; null for where it was in training."""
    other_base: bool = False
    """Take an adapter onto another base than the one it was trained on; its shapes have to fit all the same."""
    revision: str | None = None
    """Commit of a base or model on the hub; null for the one of training."""
    trust_remote_code: bool = False
    """Run Python code that comes with a checkpoint; one on the hub needs ``revision`` too."""
    quant: StoredConfig = field(default_factory=StoredConfig)
    """How weights are stored: ``quant=none``, ``nf4`` or ``int8``, or as in training."""
    dtype: Precision = Precision.auto
    """What is computed in; ``auto`` as in training, for a model's folder as its config.json has it."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``cuda:1``; ``auto`` for the first GPU, where there is one."""
    template: str | None = None
    """``chat`` or a prompt with {instruction} and {input} in it; null as in training."""
    max_new_tokens: int = 256
    """Tokens an answer may have."""
    temperature: float = 0.0
    """0 always takes the likeliest token; above it, tokens are sampled."""
    top_p: float = 1.0
    """Sample only from the likeliest tokens that have this much probability together."""
    top_k: int = 0
    """Sample only from so many of the likeliest tokens; 0 for all."""
    repetition_penalty: float = 1.0
    """Above 1, what was said is less likely to be said again."""
    seed: int = 42
    """Seeds the sampling."""
    export: ExportConfig = field(default_factory=ExportConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
