"""Follows the held-out scores of a run: ends it after ``train.patience`` evaluations, and keeps the weights of the best one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hydraft.checkpoint import best_weights
from hydraft.checkpoint.training_state import TrainingState
from hydraft.config.choices import Keep
from hydraft.config.schema import Config
from hydraft.config.train import TrainConfig
from hydraft.data.records import Record
from hydraft.errors import ConfigError
from hydraft.evaluation import label_scores, standing
from hydraft.evaluation.metrics import Scores, scored
from hydraft.models import exchange
from hydraft.training.callbacks.logging import LoggingCallback

More = Callable[[Path | None], dict[str, str]]


def check(config: Config, records: Sequence[Record], measures: Sequence[str]) -> None:
    """Refuse a ``train.best_by`` that the evaluations of a run do not have. ``measures``: of its objective.

    Raises:
        ConfigError: names those that they have.
    """
    train, known = config.train, [*measures]
    first = [record.conversations[0] for record in records]
    if train.best_by in known or not records:
        return
    if not train.eval_loss_only:
        choices = [conversation for conversation in first if label_scores.is_choice(conversation, config.data)]
        questions = [each for each in first if each.plain is None and each not in choices]
        if questions:
            known += scored(questions, [question.reference for question in questions], config.data.task)[0]
        if choices:
            known += label_scores.names(choices, config.data)
    if train.best_by not in known:
        raise ConfigError(
            f"train.best_by={train.best_by}: the held-out records have no such score: use one of {', '.join(known)}"
        )


class BestEvaluation:
    """The best evaluation so far. Every rank has one, and all decide the same."""

    def __init__(self, train: TrainConfig, logging: LoggingCallback, scores: dict[int, Scores]) -> None:
        """``scores``: of all evaluations by step, which others add to."""
        self.train = train
        self.logging = logging
        self.scores = scores
        self.candidates: set[int] = set()
        """Steps of the evaluations whose weights are kept if they are the best."""
        self.write: Callable[[Path, More], None] | None = None
        """Writes the current weights to a folder; every rank calls it."""
        self.more: More = lambda _: {}
        """Writes what is kept beside the weights of an evaluation."""

    def begin(self, state: TrainingState | None) -> None:
        """Start from a checkpoint, or from the beginning: what an earlier attempt has kept after that is removed."""
        step, kept = (0, None) if state is None else (state.step, state.best_step)
        wrong: str | None = None
        if dist.get_rank() == 0:
            best_weights.drop_after(self.folder, step)
            wrong = None if kept is None else best_weights.fault(self.folder, kept)
        wrong = exchange.broadcast(wrong)
        if kept is not None and wrong is None:
            self.candidates.add(kept)
        earlier = standing.best(self.scores, self.train.best_by)
        if self.train.keep is Keep.best and earlier is not None and earlier != self.kept:
            self.logging.screen.say(
                f"train.keep=best: the weights of step {earlier:,}, the best so far, are not there"
                f"{'' if wrong is None else f' ({wrong})'}: later evaluations are compared with "
                + ("each other" if self.kept is None else f"step {self.kept:,}")
            )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.logging.file.parent

    @property
    def kept(self) -> int | None:
        """The step of the evaluation whose weights are kept; None if none are."""
        if self.train.keep is not Keep.best:
            return None
        return standing.best(self.scores, self.train.best_by, self.candidates)

    @property
    def is_over(self) -> bool:
        """Whether ``train.patience`` evaluations were not better than the one before them."""
        return self.train.patience is not None and self._stall.evaluations >= self.train.patience

    @property
    def _stall(self) -> standing.Stall:
        return standing.stall(self.scores, self.train.best_by, self.train.min_delta)

    def evaluated(self, step: int) -> None:
        """The current weights were evaluated after ``step``: keep them if they are the best. Every rank must call it."""
        self.candidates.add(step)
        if self.kept != step:
            return
        assert self.write is not None, "a checkpoint's callback sets it"
        self.write(best_weights.folder_of(self.folder, step), self.more)
        if dist.get_rank() == 0:
            best_weights.prune(self.folder, step)

    def why_over(self, step: int, total: int) -> str:
        """One line on why the training ends after ``step`` of ``total``."""
        train, since = self.train, self._stall.since
        by = train.best_by.replace("_", " ")
        last = "" if since is None else f" since step {since:,} ({self.scores[since][train.best_by]:.4g})"
        many = f"{train.patience} evaluation{'' if train.patience == 1 else 's'}"
        return f"train.patience={train.patience}: {many} without a better {by}{last}: the training ends at step {step:,} of {total:,}"

    def install(self, target: Path) -> None:
        """Write the kept weights to ``target``, the run's adapter or model. Every rank must call it."""
        assert self.kept is not None
        if dist.get_rank() == 0:
            with self.logging.screen.heartbeat.while_working():
                best_weights.install(self.folder, self.kept, target)
        dist.barrier()

    def result(self, step: int, total: int) -> dict[str, Any]:
        """What result.json says about it. ``step``: the last one of ``total``."""
        train, found = self.train, dict[str, Any]()
        if self.is_over and step < total:
            since = self._stall.since
            found["ended_early"] = {"step": step, "of": total, "patience": train.patience, "best_step": since}
        if self.kept is not None:
            value = self.scores[self.kept][train.best_by]
            found["kept"] = {"step": self.kept, "best_by": train.best_by, "score": value}
        return found
