"""The callback that gives a preference objective the log-probabilities of its reference, before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.config.schema import Config
from hydraft.data.batch import collator
from hydraft.data.examples import Item
from hydraft.errors import ConfigError
from hydraft.evaluation.evaluator import Evaluator
from hydraft.models import exchange
from hydraft.system.console import Screen
from hydraft.training import reference
from hydraft.training.dataset import TrainingData
from hydraft.training.objectives.base import Objective
from hydraft.training.objectives.preference import PreferenceObjective, to

Collate = Callable[[list[Item]], dict[str, Any]]


class ReferenceCallback(TrainerCallback):
    """Loads the log-probabilities of the reference, or computes them. Every rank has one."""

    def __init__(
        self,
        objective: PreferenceObjective,
        model: torch.nn.Module,
        documents: reference.Documents,
        store: reference.Store,
        screen: Screen,
        batches: tuple[int, Collate],
    ) -> None:
        """``batches``: their items, and what collates the documents of them."""
        self.objective = objective
        self.model = model
        self.documents = documents
        self.store = store
        self.screen = screen
        self.size, self.collate = batches

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Set ``objective.reference``. (Under ZeRO-3 there is no forward pass before there is an engine.)"""
        count = len(self.documents)
        found = self.store.load(count) if dist.get_rank() == 0 else None
        if exchange.broadcast(found is not None):
            values = torch.zeros(count, dtype=torch.float64) if found is None else found
            values = values.to(args.device)
            dist.broadcast(values, 0)
        elif state.global_step:
            raise ConfigError(
                f"{self.store.file}: is needed to resume objective={self.objective.config.kind.value}, and is missing, or of other "
                "records: start a new run"
            )
        else:
            values = self._compute(args.device)
        self.objective.reference = values
        if dist.get_rank() == 0:
            self.store.keep(values)

    def _compute(self, device: torch.device) -> torch.Tensor:
        def sums(model: torch.nn.Module, items: list[Item]) -> tuple[torch.Tensor, torch.Tensor]:
            batch = self.collate([[example for item in items for example in item]])
            values, _, index = self.objective.documents(
                model, {name: to(value, device) for name, value in batch.items()}
            )
            return values, index

        self.screen.phase("log-probabilities of the reference", len(self.documents.lengths))
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            return reference.compute(self.model, self.documents, self.size, sums, self.screen.advance)


def referring_callbacks(
    config: Config,
    objective: Objective,
    model: torch.nn.Module,
    data: TrainingData,
    evaluator: Evaluator,
    place: tuple[Path, Screen],
) -> list[TrainerCallback]:
    """The callback of an objective with a reference, which comes before all that evaluate. ``place``: the run's folder, and its screen."""
    if not isinstance(objective, PreferenceObjective) or not objective.needs_reference:
        return []
    documents = reference.Documents(data.examples, data.encoded.lengths, evaluator.items)
    key = reference.key(config, data.encoded.key, evaluator.records) if dist.get_rank() == 0 else None
    collate = collator(config.data, int(evaluator.tokenizer.pad_token_id), config.kernels.kind)
    batches = config.train.micro_batch_size, collate
    return [ReferenceCallback(objective, model, documents, reference.Store(place[0], key), place[1], batches)]
