"""Enumerations of the schema: the values that a setting may have, as written in YAML and on the command line. No torch."""

from enum import Enum


class Mode(Enum):
    train = "train"
    plan = "plan"
    preview = "preview"
    verify = "verify"


class Init(Enum):
    pretrained = "pretrained"
    random = "random"


class Scale(Enum):
    full = "full"
    tiny = "tiny"


class Rope(Enum):
    """How rotary positions are scaled for longer records: ``rope_type`` of transformers."""

    none = "none"
    yarn = "yarn"
    linear = "linear"
    dynamic = "dynamic"


class QuantKind(Enum):
    none = "none"
    nf4 = "nf4"
    int8 = "int8"


class Offload(Enum):
    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class Precision(Enum):
    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class Scheduler(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"
    polynomial = "polynomial"


class Save(Enum):
    end = "end"
    epoch = "epoch"


class Keep(Enum):
    last = "last"
    best = "best"


class OnDivergence(Enum):
    stop = "stop"
    rewind = "rewind"
    ignore = "ignore"


class Format(Enum):
    auto = "auto"
    alpaca = "alpaca"
    messages = "messages"
    sharegpt = "sharegpt"
    text = "text"


class TrainOn(Enum):
    all = "all"
    last = "last"


class Thinking(Enum):
    auto = "auto"
    on = "on"
    off = "off"


class OnBadRecord(Enum):
    refuse = "refuse"
    skip = "skip"


class Hub(Enum):
    huggingface = "huggingface"
    modelscope = "modelscope"


class Batching(Enum):
    padding_free = "padding_free"
    padded = "padded"


class Task(Enum):
    auto = "auto"
    sentiment = "sentiment"
    qa = "qa"
    summary = "summary"
    general = "general"


class Launcher(Enum):
    auto = "auto"
    slurm = "slurm"
    joined = "joined"


class TrackerKind(Enum):
    none = "none"
    wandb = "wandb"
    tensorboard = "tensorboard"
    mlflow = "mlflow"
    swanlab = "swanlab"


class Kernels(Enum):
    torch = "torch"
    liger = "liger"
    unsloth = "unsloth"


class Loss(Enum):
    auto = "auto"
    whole = "whole"
    chunked = "chunked"


class InferMode(Enum):
    generate = "generate"
    chat = "chat"
    batch = "batch"
    serve = "serve"
    export = "export"
    verify = "verify"
    evaluate = "evaluate"


class ExportKind(Enum):
    merged = "merged"
    adapter = "adapter"
    ollama = "ollama"


class Combine(Enum):
    """The combination types of peft's ``add_weighted_adapter``; ``dare`` is its ``dare_linear``."""

    cat = "cat"
    svd = "svd"
    linear = "linear"
    ties = "ties"
    ties_svd = "ties_svd"
    dare = "dare"
    dare_svd = "dare_svd"
    dare_ties = "dare_ties"
    dare_ties_svd = "dare_ties_svd"
    magnitude_prune = "magnitude_prune"
    magnitude_prune_svd = "magnitude_prune_svd"

    @property
    def peft(self) -> str:
        """Its name there."""
        return {"dare": "dare_linear", "dare_svd": "dare_linear_svd"}.get(self.value, self.value)

    @property
    def prunes(self) -> bool:
        """Whether it keeps a share of the numbers, ``export.density``."""
        return self not in (Combine.cat, Combine.svd, Combine.linear)

    @property
    def same_rank(self) -> bool:
        """Whether it adds A to A and B to B, which must have the same shapes; others combine whole updates."""
        return self is not Combine.cat and not self.value.endswith("svd")


class ExportQuant(Enum):
    gptq = "gptq"
    awq = "awq"
    fp8 = "fp8"

    @property
    def calibrated(self) -> bool:
        """Whether it looks at records; weights of 4 bits, in groups."""
        return self is not ExportQuant.fp8


class Layout(Enum):
    native = "native"
    published = "published"
