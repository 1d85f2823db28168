"""Combinations of the schedule, NEFTune and label smoothing with other settings that a run cannot have. No torch."""

from hydraft.config.choices import Batching, Kernels, Loss, Scheduler
from hydraft.config.objective import ObjectiveKind
from hydraft.config.rule import value
from hydraft.config.train import TrainConfig

DEFAULT = TrainConfig()

SCHEDULE = [
    value(
        lambda c: c.train.warmup_steps is not None and c.train.warmup_ratio > 0,
        "train.warmup_steps={c.train.warmup_steps} and train.warmup_ratio={c.train.warmup_ratio:g} are two lengths of one warm-up: use train.warmup_ratio=0, or leave train.warmup_steps out",
    ),
    value(
        lambda c: (
            c.train.warmup_steps is not None
            and c.train.max_steps is not None
            and c.train.warmup_steps >= c.train.max_steps
        ),
        "train.warmup_steps={c.train.warmup_steps}: the run ends before, with train.max_steps={c.train.max_steps}: use fewer",
    ),
    value(
        lambda c: c.train.min_learning_rate > 0 and c.train.scheduler is Scheduler.constant,
        "train.min_learning_rate={c.train.min_learning_rate:g}: train.scheduler=constant never falls: use train.scheduler=cosine, or leave it out",
    ),
    value(
        lambda c: c.train.min_learning_rate >= c.train.learning_rate,
        "train.min_learning_rate={c.train.min_learning_rate:g} is not below train.learning_rate={c.train.learning_rate:g}: use a smaller one",
    ),
    value(
        lambda c: c.train.decay_ratio != DEFAULT.decay_ratio and c.train.scheduler is not Scheduler.wsd,
        "train.decay_ratio={c.train.decay_ratio:g} is read by train.scheduler=wsd, and this is {c.train.scheduler.value}: leave it out",
    ),
    value(
        lambda c: c.train.scheduler is Scheduler.wsd and c.train.decay_ratio + c.train.warmup_ratio > 1,
        "train.decay_ratio={c.train.decay_ratio:g} and train.warmup_ratio={c.train.warmup_ratio:g} have more than all steps together: use smaller ones",
    ),
    value(
        lambda c: c.train.decay_power != DEFAULT.decay_power and c.train.scheduler is not Scheduler.polynomial,
        "train.decay_power={c.train.decay_power:g} is read by train.scheduler=polynomial, and this is {c.train.scheduler.value}: leave it out",
    ),
    # transformers takes the length of a row for that of a record (integrations/neftune.py).
    value(
        lambda c: c.train.neftune_alpha is not None and (c.data.packing or c.data.batching is Batching.padding_free),
        "train.neftune_alpha={c.train.neftune_alpha:g}: its noise is scaled by the tokens of a row, which has several records here: use data.batching=padded and data.packing=false",
        source="NEFTune, arXiv:2310.05914, algorithm 1; transformers, integrations/neftune.py",
    ),
    value(
        lambda c: c.train.neftune_alpha is not None and c.kernels.kind is Kernels.unsloth,
        "train.neftune_alpha={c.train.neftune_alpha:g} is not known to work in the kernels of kernels=unsloth: use kernels=torch",
    ),
    value(
        lambda c: c.train.label_smoothing > 0 and c.objective.kind is not ObjectiveKind.sft,
        "train.label_smoothing={c.train.label_smoothing:g} is for objective=sft, and this is objective={c.objective.kind.value}: leave it out",
    ),
    value(
        lambda c: (
            c.train.label_smoothing > 0 and (c.kernels.kind is not Kernels.torch or c.kernels.loss is Loss.chunked)
        ),
        "train.label_smoothing={c.train.label_smoothing:g} needs the logits of a whole batch: use kernels=torch kernels.loss=auto, or leave it out",
        source="transformers, trainer_pt_utils.py, LabelSmoother",
    ),
]
"""Joined to the table in ``rules.py``."""
