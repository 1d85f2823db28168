"""Schema of infer.py: every setting with its type, bounds and unit. Combinations are checked in ``infer_rules.py``. No torch."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from hydraft.config.bounds import LARGEST_SEED, setting
from hydraft.config.choices import (
    Combine,
    ExportKind,
    ExportQuant,
    Format,
    InferMode,
    Layout,
    Precision,
    QuantKind,
    Task,
    Thinking,
)
from hydraft.config.columns import ALLOWED as COLUMNS_ALLOWED
from hydraft.config.columns import are_columns
from hydraft.config.serve import ServeConfig
from hydraft.config.template import TEMPLATE, is_template
from hydraft.config.verify import VerifyConfig


@dataclass
class ProcessesConfig:
    """Processes of ``mode=batch`` and ``mode=evaluate`` on this machine; ``cluster=1x4`` is four."""

    nodes: int = setting(
        1, one_of=(1,), refusal="infer.py runs on one machine: use cluster=1x2, cluster=1x4 or cluster=1x8"
    )
    """Number of machines: infer.py runs on one."""
    ranks_per_node: int = setting(1, at_least=1, unit="processes")
    """Processes, one per GPU."""


@dataclass
class StoredConfig:
    """How the weights are stored: ``quant=none``, ``quant=nf4`` or ``quant=int8``."""

    kind: QuantKind | None = None
    """``none``, ``nf4`` (4 bits) or ``int8``. null: as in training."""
    double_quant: bool = True
    """nf4: quantise the constants of each block as well."""


@dataclass
class ExportConfig:
    """What ``mode=export`` writes."""

    kind: ExportKind = ExportKind.merged
    """``merged``: a complete model. ``adapter``: only the adapter, for servers that load it on top of its base model. ``ollama``: a
    complete model as GGUF, with a Modelfile for ``ollama create``."""
    combine: Combine | None = None
    """Make one adapter of all adapters of ``run=[a,b]``, as peft's ``add_weighted_adapter`` does: ``cat`` is the weighted sum of their
    updates, with the sum of their ranks; ``svd`` the same, cut to the largest rank. ``linear``, ``ties``, ``dare``, ``dare_ties`` and
    ``magnitude_prune`` combine the matrices A and B each by itself; with ``_svd``, the updates. null: one adapter is exported."""
    weights: list[float] = setting(
        factory=list,
        valid=lambda weights: all(math.isfinite(weight) and weight != 0 for weight in weights),
        allowed="numbers other than 0, one for each adapter",
    )
    """combine: the weight of each adapter, in the order of ``run``; a negative one is subtracted. Empty: the same for all, with sum 1."""
    density: float | None = setting(None, above=0, at_most=1.0)
    """combine: the share of numbers that is kept by ``ties`` and ``magnitude_prune`` (the largest) and ``dare`` (drawn with ``seed``). null: 0.5."""
    quant: ExportQuant | None = None
    """Quantise the merged model, for vLLM and transformers (compressed-tensors): ``gptq`` and ``awq`` store weights in 4 bits, calibrated
    on the run's own training records; ``fp8`` has weights and inputs of 8-bit floats, without calibration. Needs llm-compressor. null: no."""
    calibration: int = setting(128, at_least=1, unit="records")
    """quant: training records that ``gptq`` and ``awq`` calibrate on, spread evenly over all."""
    layout: Layout = Layout.native
    """``native``: the layout of transformers. ``published``: that in which the model family was published (ChatGLM2, ChatGLM3, InternLM2
    and Baichuan)."""
    dtype: Precision = Precision.auto
    """Data type of merged weights. ``auto``: that of the base checkpoint."""
    llama_cpp: str | None = None
    """ollama: the folder of llama.cpp's source, which has the converter to GGUF (``convert_hf_to_gguf.py``). null: that of the environment
    variable ``LLAMA_CPP``, or the converter on ``PATH``."""
    license: str | None = setting(
        None,
        valid=lambda name: re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,63}", name) is not None,
        allowed="the hub's identifier of a license, such as apache-2.0 or other",
    )
    """License in the model card, as the hub calls it (``apache-2.0``). null: the one in the card of the base."""
    push: str | None = setting(
        None,
        valid=lambda name: re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name) is not None,
        allowed="owner/name, a repository on the Hugging Face hub",
    )
    """The repository on the Hugging Face hub to upload the folder to, ``owner/name``; it is made if there is none. null: no upload."""
    public: bool = False
    """A repository that ``push`` makes is public. false: it is private."""


@dataclass
class InferConfig:
    """Inference with a trained model."""

    mode: InferMode = InferMode.generate
    """``generate`` answers one prompt, ``chat`` is a dialogue in the terminal, ``batch`` answers the prompts of a file, ``serve`` is an
    OpenAI-compatible server, ``export`` writes a model folder, ``verify`` compares a server's answers with those of the trained model,
    ``evaluate`` runs benchmarks."""
    run: Any = MISSING
    """A run's folder, ``last`` for the newest below outputs/, the folder of a sweep for its best job, ``best`` for that of the newest
    sweep, ``<run>/best`` for the best evaluation of a run, a folder with an adapter or a model, or several adapters of one base model:
    ``[a,b]``, or with names ``{x: a, y: b}``. A run that is not finished answers with its newest checkpoint."""
    adapter: str | None = None
    """Which of several adapters to use. null: the first; ``export.combine``: all."""
    prompt: str | None = None
    """generate: the prompt, as plain text."""
    system: str | None = None
    """A system message before the prompt; with ``export.kind=ollama``, that of the Modelfile."""
    against: str | None = setting(
        None,
        valid=lambda address: re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", address) is not None,
        allowed="an address such as http://127.0.0.1:8000",
    )
    """verify: address of an OpenAI-compatible server (vLLM, Ollama, ``mode=serve``)."""
    input: str | None = None
    """batch, and verify in place of the run's held-out records: a .json (list), .jsonl or .parquet file of prompts, or of records in a format that training reads."""
    benchmark: list[str] = field(default_factory=list)
    """evaluate: tasks of lm-evaluation-harness by name (``[ceval,cmmlu,mmlu]``), YAML files of tasks, or folders of them."""
    benchmark_shots: int | None = setting(None, at_least=0, unit="examples")
    """evaluate: solved examples before each question. null: as each task has it."""
    benchmark_limit: int | None = setting(None, at_least=1, unit="questions")
    """evaluate: ask only the first questions of each task, so many. null: all."""
    benchmark_chat: bool = False
    """evaluate: format prompts with the model's chat template."""
    before: bool = False
    """evaluate: also evaluate the base model without the adapter, for a comparison."""
    format: Format = Format.auto
    """batch: format of the records, as in ``data.format``."""
    columns: dict[str, str] = setting(factory=dict, valid=are_columns, allowed=COLUMNS_ALLOWED)
    """batch: names of the records' keys, as in ``data.columns``."""
    output: str | None = None
    """batch: the .jsonl file for the answers. export: the folder to create. evaluate: a .json file for
    the scores, besides the run's folder."""
    batch_size: int = setting(16, at_least=1, unit="prompts")
    """batch and evaluate: prompts that are processed together."""
    cluster: ProcessesConfig = field(default_factory=ProcessesConfig)
    task: Task = Task.auto
    """batch: which scores are computed, as in ``data.task``."""
    base: str | None = None
    """Folder or hub name of the adapter's base model. null: the one of training."""
    other_base: bool = False
    """Accept a base model other than the one that the adapter was trained on; the shapes must match."""
    revision: str | None = None
    """Commit of a base model or model on the hub. null: the one of training."""
    trust_remote_code: bool = False
    """Run Python code that comes with a checkpoint. For a checkpoint on the hub, ``revision`` is needed too."""
    quant: StoredConfig = field(default_factory=StoredConfig)
    dtype: Precision = Precision.auto
    """Data type of the computation. ``auto``: as in training; for a model folder, as in its config.json."""
    device: str = setting(
        "auto",
        valid=lambda device: re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is not None,
        allowed="auto, cpu, cuda or, for the second GPU, cuda:1",
    )
    """``cpu``, ``cuda`` or ``cuda:1``. ``auto``: the first GPU, or the CPU without one; export: also for a model that does not
    fit in the free memory of the GPU."""
    template: str | None = setting(None, valid=is_template, allowed=TEMPLATE)
    """``chat`` for the model's chat template, or a prompt with {instruction} and {input} in it. null: as in training."""
    thinking: Thinking = Thinking.auto
    """Whether answers begin with thoughts, if the chat template can turn them on and off. ``auto``: as in training; for a model that was
    trained elsewhere, as its chat template does by default."""
    max_new_tokens: int = setting(256, at_least=1, unit="tokens")
    """Most tokens of an answer."""
    temperature: float = setting(0.0, at_least=0, hint="; 0 is greedy")
    """0: greedy decoding. Above 0: tokens are sampled, the more randomly the higher it is."""
    top_p: float = setting(1.0, above=0, at_most=1)
    """Sample only from the most likely tokens whose probabilities add up to this. 1: from all."""
    top_k: int = setting(0, at_least=0, hint="; 0 for all tokens")
    """Sample only from this many of the most likely tokens. 0: from all."""
    repetition_penalty: float = setting(1.0, at_least=1, hint="; 1 for none")
    """Above 1: tokens that occurred already become less likely. 1: no penalty."""
    seed: int = setting(42, at_least=0, at_most=LARGEST_SEED)
    """Seed of the sampling; export: of what ``dare`` drops."""
    export: ExportConfig = field(default_factory=ExportConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
