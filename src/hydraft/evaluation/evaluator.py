"""Evaluates a model on held-out records: the loss, and scores of generated answers. The records are shared out over the ranks.

The number of ranks changes which rank takes a batch, never the batches; so the scores do not depend on it.

The loss computes the logits of a limited number of trained tokens at a time (``models/loss_scored.py``), and answers are generated
for as many records at a time as need no more memory than a micro-batch in training (``plan/scoring.py``). So evaluation fits
wherever training fits.

Shapes: B records of a batch, T tokens, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import peft
import torch
import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hydraft.config.data import DataConfig
from hydraft.data import held_out
from hydraft.data.batch import Padded
from hydraft.data.encoding import Encoding
from hydraft.data.examples import Item, mismatch
from hydraft.data.records import Record
from hydraft.data.thinking import Answer
from hydraft.data.tokenize import prompt_ids
from hydraft.evaluation.metrics import Scores, scored
from hydraft.evaluation.record_scores import RecordScores, of_items
from hydraft.models import exchange, generation
from hydraft.plan import scoring

Done = Callable[[int], None]
"""Called with the number of records that all ranks have finished since the last call."""
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
class BatchSizes:
    """How many records are evaluated at a time."""

    micro_batch_size: int
    """Records, for the loss."""
    tokens: int
    """Tokens of a micro-batch, at most; used if ``memory`` is None."""
    max_new_tokens: int
    """Tokens of an answer, at most."""
    memory: scoring.GenerationMemory | None = None
    """Memory for answers; None for an architecture that the plan does not know."""

    @classmethod
    def of(
        cls, data: DataConfig, micro_batch_size: int, memory: scoring.GenerationMemory | None = None
    ) -> "BatchSizes":
        """The sizes of a run."""
        return cls(micro_batch_size, micro_batch_size * data.max_length, data.eval_max_new_tokens, memory)

    def answers(self, prompt: int) -> int:
        """Answers to generate at a time if the longest prompt has ``prompt`` tokens.

        If the memory is not known, they have no more tokens than a micro-batch: without recomputation, training keeps the keys and
        values of as many.
        """
        if self.memory is not None:
            return self.memory.records(prompt)
        return max(1, min(scoring.MOST, self.tokens // (prompt + self.max_new_tokens)))


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation."""

    scores: Scores
    by_record: list[RecordScores]
    unfinished: int


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
        self.asked = [index for index, conversation in enumerate(first) if conversation.plain is None]
        """The records for which an answer is generated."""
        self.questions = [first[index] for index in self.asked]
        """Their conversations."""
        self.scores: Scores = {}
        """Of the last evaluation."""
        self.by_record: list[RecordScores] = []
        """The loss and the scores of each record in the last evaluation."""
        self.unfinished = 0
        """Answers of the last evaluation whose thoughts did not end within ``data.eval_max_new_tokens``; they count as empty."""

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
        return Evaluated(self.scores, self.by_record, self.unfinished)

    @last.setter
    def last(self, found: Evaluated) -> None:
        self.scores, self.by_record, self.unfinished = found.scores, found.by_record, found.unfinished

    def parts(self, loss_only: bool = False) -> int:
        """The sum of the numbers that ``evaluate`` passes to ``done``."""
        return len(self.items) if loss_only or not self.questions else len(self.questions)

    def evaluate(self, model: torch.nn.Module, done: Done, loss_only: bool = False) -> Scores:
        """Means of the objective's measures, and scores of generated answers. Every rank must call it; all get the same."""
        generates = bool(self.questions) and not loss_only
        model.eval()
        try:
            # done(0) reports no progress, but lets the caller end the evaluation
            scores = self.measure(model, (lambda _: done(0)) if generates else done)
            if generates:
                found, each = scored(self.questions, self.answers(model, done), self.data.task)
                scores |= found
                for index, own in zip(self.asked, each, strict=True):
                    self.by_record[index].scores.update(own)
        finally:
            model.train()
        self.scores = scores
        return scores

    @torch.no_grad()
    def measure(self, model: torch.nn.Module, done: Done) -> Scores:
        """Means of the objective's measures over all records. The loss is in nats, and every trained token has the same weight."""
        collate, names = Padded(int(self.tokenizer.pad_token_id)), self.objective.measures
        lengths = [max(len(example["input_ids"]) for example in item) for item in self.items]
        chunks = _chunks(lengths, lambda _: self.sizes.micro_batch_size)
        sums = torch.zeros(len(chunks), len(names) + 1, dtype=torch.float64, device=self.device)  # of each chunk
        parts = torch.zeros(len(self.items), 2, dtype=torch.float64, device=self.device)  # of each item: loss, count
        for number, counts, current in _of_this_rank(len(chunks)):
            peers = [[self.items[index] for index in chunks[other]] for other in current]
            batch = collate(peers[number - current.start])
            batch = {key: value if key == "labels" else value.to(self.device) for key, value in batch.items()}
            found = self.objective.measure(model, batch, peers)
            if counts:
                for column, value in enumerate(found.sums):
                    sums[number, column] = value
                sums[number, -1] = found.count
                parts[chunks[number], 0] = found.of_items.to(parts)
                parts[chunks[number], 1] = found.counts.to(parts)
            done(sum(len(chunks[other]) for other in current))
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
        chunks = _chunks([len(prompt) for prompt in prompts], self.sizes.answers)
        found: dict[int, Answer] = {}
        for number, _, current in _of_this_rank(len(chunks)):
            answers = self._generate(model, [prompts[index] for index in chunks[number]])
            found |= dict(zip(chunks[number], answers, strict=True))
            done(sum(len(chunks[other]) for other in current))
        shares = exchange.all_gather([[index, *answer] for index, answer in found.items()])
        merged = {index: Answer(*answer) for share in shares for index, *answer in share}
        self.unfinished = sum(not answer.ended for answer in merged.values())
        return [merged[index].text for index in range(len(prompts))]

    def _generate(self, model: Any, prompts: Sequence[list[int]]) -> list[Answer]:
        length, device = max(map(len, prompts)), self.device
        pad = int(self.tokenizer.pad_token_id)
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in prompts], device=device)  # (B, T)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=device)  # (B, T)
        inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        settings = GenerationConfig(
            max_new_tokens=self.sizes.max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=generation.end_ids(self.tokenizer, inner),
            use_cache=True,
        )
        several = dist.get_world_size() > 1
        with generation.greedy(inner):
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=several)
        made = out[:, length:].tolist()
        return [generation.read_answer(self.tokenizer, *pair) for pair in zip(prompts, made, strict=True)]


def _chunks(lengths: list[int], size: Callable[[int], int]) -> list[list[int]]:
    """Indices in chunks of similar lengths; ``size`` returns the number in a chunk whose longest has so many tokens."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if not chunks or len(chunks[-1]) >= size(lengths[index]):  # this one is the longest of the chunk
            chunks.append([])
        chunks[-1].append(index)
    return chunks


def _of_this_rank(count: int) -> Iterator[tuple[int, bool, range]]:
    """This rank's chunks out of ``count``: the chunk, whether its result counts, and the chunks of all ranks in this round.

    ZeRO-3 gathers weights in every forward pass, so all ranks must make the same number of passes. In the last round, a rank for
    which no chunk is left takes the last one again, and its result does not count.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    for start in range(0, count, world):
        current = range(start, min(start + world, count))
        yield min(start + rank, current[-1]), start + rank < count, current
