"""Rules about the best evaluation of a run: when training ends early, and which weights are kept. No torch."""

from hydraft.config.choices import Keep
from hydraft.config.objective import ObjectiveKind
from hydraft.config.rule import value
from hydraft.config.score import LOSS
from hydraft.config.train import TrainConfig

BEFORE_ANSWERS = (LOSS, "memory", "seconds", "tokens_per_second")
"""Objectives of a sweep that are known without generated answers."""

BEST = [
    value(
        lambda c: c.train.patience is not None and c.train.eval_every is None,
        "train.patience={c.train.patience} counts evaluations during training, and there are none: use train.eval_every=epoch, or a number of steps",
    ),
    value(
        lambda c: c.train.keep is Keep.best and c.train.eval_every is None,
        "train.keep=best needs evaluations during training, and there are none: use train.eval_every=epoch, or a number of steps",
    ),
    value(
        lambda c: c.train.min_delta != TrainConfig().min_delta and c.train.patience is None,
        "train.min_delta={c.train.min_delta} is for train.patience, which ends a run early: use train.patience=3, or leave it out",
    ),
    value(
        lambda c: c.train.best_by != LOSS and c.data.eval is None,
        "train.best_by={c.train.best_by} is a held-out score: give data.eval=held_out.json, or leave it out",
    ),
    value(
        lambda c: c.train.best_by != LOSS and c.train.eval_loss_only and c.objective.kind is ObjectiveKind.sft,
        "train.best_by={c.train.best_by} is a score of answers, and train.eval_loss_only=true generates none during training: use train.eval_loss_only=false, or train.best_by=loss",
    ),
    value(
        lambda c: (
            c.train.keep is Keep.best and c.train.eval_loss_only and not {*c.sweep.objective} <= {*BEFORE_ANSWERS}
        ),
        "train.keep=best with train.eval_loss_only=true: of the weights that are kept only the loss is known, and jobs are compared by sweep.objective={c.sweep.objective}: use train.eval_loss_only=false",
    ),
]
