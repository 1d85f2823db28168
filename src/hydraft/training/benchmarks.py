"""Benchmarks before and after training, on the model in training: what a run gains against what it forgets."""

from collections.abc import Callable
from typing import Any

import torch

from hydraft.config.schema import Config
from hydraft.evaluation.batches import BatchSizes
from hydraft.evaluation.benchmarks import tasks
from hydraft.evaluation.metrics import Scores


class Benchmarks:
    """The benchmarks of a run. Every rank has them, and all evaluate together."""

    def __init__(
        self, config: Config, model: torch.nn.Module, tokenizer: Any, device: torch.device, sizes: BatchSizes
    ) -> None:
        """Load the tasks.

        Raises:
            ConfigError: a task or its data set is not available.
        """
        self.tasks = tasks.load(tasks.of_run(config))
        self.model, self.tokenizer, self.device, self.sizes = model, tokenizer, device, sizes

    @property
    def key(self) -> str:
        """What the scores of the base depend on, as a text."""
        return f"benchmark {self.tasks.requested}"

    def evaluate(self, done: Callable[[], None]) -> Scores:
        """The scores by name. ``done`` is called between batches."""
        from hydraft.evaluation.benchmarks.harness import Harness
        from hydraft.evaluation.benchmarks.run import evaluate

        self.model.eval()
        try:
            harness = Harness(self.model, self.tokenizer, self.device, self.sizes.rows, lambda _: done())
            return {name: value for one in evaluate(self.tasks, harness) for name, value in one.named.items()}
        finally:
            self.model.train()
