"""Evaluates a model on held-out records: the loss, and scores of answers, generated or chosen among labels. The records are shared out over the ranks.

The number of ranks changes which rank takes a batch, never the batches; so the scores do not depend on it.

The loss computes the logits of a limited number of trained tokens at a time (``models/loss_scored.py``), and answers are generated
for as many records at a time as need no more memory than a micro-batch in training (``plan/scoring.py``). So evaluation fits
wherever training fits.

Shapes: B records of a batch, T tokens, V vocabulary.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from hydraft.config import score
from hydraft.config.data import DataConfig
from hydraft.data import held_out
from hydraft.data.batch import Padded
from hydraft.data.encoding import Encoding
from hydraft.data.examples import Item, mismatch
from hydraft.data.records import Record
from hydraft.data.thinking import Answer
from hydraft.data.tokenize import prompt_ids
from hydraft.evaluation import label_scores
from hydraft.evaluation.batches import BatchSizes, Done, chunks, of_this_rank
from hydraft.evaluation.generated import generate
from hydraft.evaluation.label_scores import LabelScorer
from hydraft.evaluation.metrics import Scores, scored
from hydraft.evaluation.record_scores import RecordScores, of_items
from hydraft.models import exchange

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Measured:
    """What an objective measures on a held-out batch of B items."""

    sums: list[torch.Tensor]
    """Sums over the batch, one for each of the objective's ``measures``."""
    count: int
    """What the means of ``sums`` are taken over, such as trained tokens."""
    of_items: torch.Tensor  # (B,)
    """The part of each item in the first sum, the loss."""
    counts: torch.Tensor  # (B,)
    """The part of each item in ``count``."""


class Objective(Protocol):
    """What a training objective provides for evaluation."""

    @property
    def encoding(self) -> Encoding:
        """How records are encoded."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the values that ``measure`` computes; the first one is ``loss``."""

    def measure(self, model: torch.nn.Module, batch: Batch, peers: list[list[Item]]) -> Measured:
        """Measure a held-out batch.

        Args:
            batch: tensors of shape (B, T), labels on the CPU and the others on the model's device.
            peers: the items of the batches that all ranks evaluate at the same time, this one among them.
        """


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation."""

    scores: Scores
    by_record: list[RecordScores]
    unfinished: int
    answers: dict[int, str]
    """The answer of the model to each record that has one, by the record's index."""


class Evaluator:
    """Evaluates a model on held-out records before, during and after training."""

    def __init__(
        self,
        records: list[Record],
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        device: torch.device,
        sizes: BatchSizes,
        objective: Objective,
    ) -> None:
        self.records = records
        self.tokenizer = tokenizer
        self.data = data
        self.device = device
        self.sizes = sizes
        self.objective = objective
        self.owners: list[int] = []
        """The record of each item, as its index."""
        self.items = self._with_mismatched(list(self._encode()))
        first = [record.conversations[0] for record in records]
        self.chosen = [index for index, conversation in enumerate(first) if label_scores.is_choice(conversation, data)]
        """The records whose answer is chosen among ``data.labels``."""
        self.labels = LabelScorer([first[index] for index in self.chosen], tokenizer, data, device, sizes)
        by_label = set(self.chosen)
        self.asked = [i for i, conversation in enumerate(first) if conversation.plain is None and i not in by_label]
        """The records for which an answer is generated."""
        self.questions = [first[index] for index in self.asked]
        """Their conversations."""
        self.scores: Scores = {}
        """Of the last evaluation."""
        self.by_record: list[RecordScores] = []
        """The loss and the scores of each record in the last evaluation."""
        self.unfinished = 0
        """Answers of the last evaluation whose thoughts did not end within ``data.eval_max_new_tokens``; they count as empty."""
        self.found: dict[int, str] = {}
        """The answers of the last evaluation, by the index of their record."""

    def _encode(self) -> Iterator[Item]:
        encoding = self.objective.encoding
        for index, record in enumerate(self.records):
            whole = encoding.encode(record, self.tokenizer, self.data)
            examples = [example for example, _ in encoding.cut(whole, self.data.max_length)]
            for start in range(0, len(examples), encoding.sequences):
                self.owners.append(index)
                yield examples[start : start + encoding.sequences]

    def _with_mismatched(self, items: list[Item]) -> list[Item]:
        if not self.objective.encoding.judged:
            return items
        before = [*items[-1:], *items[:-1]]
        return [
            [own, mismatch(own, other, self.data.max_length)] for (own,), (other,) in zip(items, before, strict=True)
        ]

    def key(self, loss_only: bool) -> str:
        """What the results for a model depend on besides the model, as a hash."""
        records = [held_out.digest(record, 0) for record in self.records]
        return hashlib.sha256(repr((records, self.data, self.sizes, loss_only)).encode()).hexdigest()

    @property
    def last(self) -> Evaluated:
        """The results of the last evaluation."""
        return Evaluated(self.scores, self.by_record, self.unfinished, self.found)

    @last.setter
    def last(self, found: Evaluated) -> None:
        self.scores, self.by_record, self.unfinished = found.scores, found.by_record, found.unfinished
        self.found = found.answers

    @property
    def note(self) -> str:
        """A line about ``data.labels`` if the answers to some held-out records are not chosen among them; empty otherwise."""
        if not self.labels.labels or not self.asked:
            return ""
        chosen = f"{len(self.chosen):,} of {len(self.records):,}" if self.chosen else "no"
        return f"data.labels: {chosen} held-out records have one of these labels as the answer; answers to the others are generated"

    def parts(self, loss_only: bool = False) -> int:
        """The sum of the numbers that ``evaluate`` passes to ``done``."""
        answers = len(self.questions) + len(self.labels.rows)
        return len(self.items) if loss_only or not answers else answers

    def evaluate(self, model: torch.nn.Module, done: Done, loss_only: bool = False) -> Scores:
        """Means of the objective's measures, and scores of answers. Every rank must call it; all get the same."""
        answers = bool(self.questions or self.chosen) and not loss_only
        self.found = {}
        model.eval()
        try:
            # done(0) reports no progress, but lets the caller end the evaluation
            scores = self.measure(model, (lambda _: done(0)) if answers else done)
            if answers:
                scores |= self._scores_of_answers(model, done)
        finally:
            model.train()
        self.scores = {name: scores[name] for name in score.ordered(scores)}
        return self.scores

    def _scores_of_answers(self, model: torch.nn.Module, done: Done) -> Scores:
        """Choose and generate the answers; their scores over all records, and in ``by_record`` those of each."""
        scores: Scores = {}
        if self.chosen:
            choices = self.labels.choices(model, done)
            scores |= choices.scores
            self._keep(self.chosen, choices.answers, choices.each)
        if self.questions:
            texts = self.answers(model, done)
            found, each = scored(self.questions, texts, self.data.task)
            both = found.keys() & scores.keys()
            scores |= found
            self._keep(self.asked, texts, each)
            for name in both:  # of a task with chosen and generated answers
                scores[name] = fmean(one.scores[name] for one in self.by_record if name in one.scores)
        return scores

    def _keep(self, indices: list[int], texts: list[str], each: list[Scores]) -> None:
        for index, text, own in zip(indices, texts, each, strict=True):
            self.found[index] = text
            self.by_record[index].scores.update(own)

    @torch.no_grad()
    def measure(self, model: torch.nn.Module, done: Done) -> Scores:
        """Means of the objective's measures over all records. The loss is in nats, and every trained token has the same weight."""
        collate, names = Padded(int(self.tokenizer.pad_token_id)), self.objective.measures
        lengths = [max(len(example["input_ids"]) for example in item) for item in self.items]
        batches = chunks(lengths, lambda _: self.sizes.micro_batch_size)
        sums = torch.zeros(len(batches), len(names) + 1, dtype=torch.float64, device=self.device)  # of each chunk
        parts = torch.zeros(len(self.items), 2, dtype=torch.float64, device=self.device)  # of each item: loss, count
        for number, counts, current in of_this_rank(len(batches)):
            peers = [[self.items[index] for index in batches[other]] for other in current]
            batch = collate(peers[number - current.start])
            batch = {key: value if key == "labels" else value.to(self.device) for key, value in batch.items()}
            found = self.objective.measure(model, batch, peers)
            if counts:
                for column, value in enumerate(found.sums):
                    sums[number, column] = value
                sums[number, -1] = found.count
                parts[batches[number], 0] = found.of_items.to(parts)
                parts[batches[number], 1] = found.counts.to(parts)
            done(sum(len(batches[other]) for other in current))
        dist.all_reduce(sums)  # exact: each number is added to zeros
        dist.all_reduce(parts)
        self.by_record = of_items(self.records, self.owners, parts.tolist())
        total = sums.sum(0)
        return {name: float(total[column] / total[-1]) for column, name in enumerate(names)}

    @torch.no_grad()
    def answers(self, model: torch.nn.Module, done: Done) -> list[str]:
        """Greedy answers to the last question of each conversation, without thoughts, gathered over the ranks."""
        encoded = [prompt_ids(conversation, self.tokenizer, self.data) for conversation in self.questions]
        prompts = [ids[-self.data.max_length :] for ids in encoded]
        batches = chunks([len(prompt) for prompt in prompts], self.sizes.answers)
        found: dict[int, Answer] = {}
        for number, _, current in of_this_rank(len(batches)):
            some = [prompts[index] for index in batches[number]]
            answers = generate(model, self.tokenizer, some, self.sizes.max_new_tokens, self.device)
            found |= dict(zip(batches[number], answers, strict=True))
            done(sum(len(batches[other]) for other in current))
        shares = exchange.all_gather([[index, *answer] for index, answer in found.items()])
        merged = {index: Answer(*answer) for share in shares for index, *answer in share}
        self.unfinished = sum(not answer.ended for answer in merged.values())
        return [merged[index].text for index in range(len(prompts))]
