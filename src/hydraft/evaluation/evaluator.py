"""A model on held-out records: the loss, and answers by batched generation. Every rank takes its share.

How many ranks there are changes no batch, only who takes it; so the scores are those of one rank.

The loss takes the logits of trained tokens alone, some at a time (``models/scored.py``), and as many records are answered at once
as take no more memory than a micro-batch does in training (``plan/scoring.py``): what training fits, scoring fits.

Shapes: B records of a batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import peft
import torch
import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hydraft.config.schema import DataConfig
from hydraft.data.batch import Padded
from hydraft.data.formats import Conversation
from hydraft.data.tokenize import Example, encode, prompt_ids
from hydraft.evaluation.metrics import Scores, score
from hydraft.models import generation, loss_scored
from hydraft.plan import scoring

Done = Callable[[int], None]
"""Told that so many more are done, over all ranks."""
Batch = list[tuple[int, list[int]]]
"""(index of the record, prompt ids) pairs."""
AtOnce = Callable[[int], int]
"""How many records are answered at once whose longest prompt has so many tokens."""


@dataclass
class HeldOut:
    """Records to score a model on, before, during and after training."""

    conversations: list[Conversation]
    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    device: torch.device
    micro_batch_size: int
    """Records at a time when the loss is taken."""
    room: scoring.GenerationMemory | None = None
    """For answers; None for an architecture that the plan does not know."""

    def __post_init__(self) -> None:
        self.examples, _ = encode(self.conversations, self.tokenizer, self.data)
        self.asked = [conversation for conversation in self.conversations if conversation.plain is None]
        """Those that ask something."""

    def parts(self, loss_only: bool = False) -> int:
        """How many parts ``score`` reports as done, all together."""
        return len(self.examples) if loss_only or not self.asked else len(self.asked)

    def at_once(self, prompt: int) -> int:
        """How many records are answered at once whose longest prompt has so many tokens.

        Where the plan does not know what a token takes, no more tokens than a micro-batch may have: without recomputation training
        keeps the keys and values of each.
        """
        if self.room is not None:
            return self.room.records(prompt)
        tokens = self.micro_batch_size * self.data.max_length
        return max(1, min(scoring.MOST, tokens // (prompt + self.data.eval_max_new_tokens)))

    def score(self, model: torch.nn.Module, done: Done, loss_only: bool = False) -> Scores:
        """Held-out loss of all records and scores of the answers; every rank must ask, and all get the same."""
        model.eval()
        pad = int(self.tokenizer.pad_token_id)
        told = done if loss_only or not self.asked else lambda _: done(0)  # who listens may end it here
        try:
            scores = {"loss": held_out_loss(model, self.examples, pad, self.device, self.micro_batch_size, told)}
            if self.asked and not loss_only:
                predictions = answers(model, self.tokenizer, self.asked, self.data, self.device, self.at_once, done)
                scores |= score(self.asked, predictions, self.data.task)
        finally:
            model.train()
        return scores


def _untold(count: int) -> None:
    """For whoever does not want to know."""


@torch.no_grad()
def held_out_loss(
    model: torch.nn.Module,
    examples: list[Example],
    pad_id: int,
    device: torch.device,
    batch_size: int,
    done: Done = _untold,
) -> float:
    """Mean cross-entropy of the trained tokens of ``examples``, each token weighing the same, in nats."""
    collate = Padded(pad_id)
    chunks = _chunks([len(example["input_ids"]) for example in examples], lambda _: batch_size)
    sums = torch.zeros(len(chunks), 2, dtype=torch.float64, device=device)  # loss and tokens of each
    taken = [loss_scored.chunks_of([examples[index] for index in chunk]) for chunk in chunks]
    for number, counts, together in _shared(len(chunks)):
        batch = collate([[examples[index] for index in chunks[number]]])
        batch = {key: value if key == "labels" else value.to(device) for key, value in batch.items()}
        loss, tokens = loss_scored.summed_loss(model, batch, max(taken[other] for other in together))
        if counts:
            sums[number, 0], sums[number, 1] = loss, tokens
        done(sum(len(chunks[other]) for other in together))
    dist.all_reduce(sums)  # one rank's numbers and zeros: exact
    total = sums.sum(0)
    return float(total[0] / total[1])


@torch.no_grad()
def answers(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[Conversation],
    data: DataConfig,
    device: torch.device,
    at_once: AtOnce,
    done: Done = _untold,
) -> list[str]:
    """Greedy answers to every conversation's last question, gathered over the ranks."""
    world = dist.get_world_size()
    prompts = [prompt_ids(conversation, tokenizer, data)[-data.max_length :] for conversation in conversations]
    chunks = _chunks([len(prompt) for prompt in prompts], at_once)
    found: dict[int, str] = {}
    for number, _, together in _shared(len(chunks)):
        batch = [(index, prompts[index]) for index in chunks[number]]
        found |= _generate(model, tokenizer, batch, data.eval_max_new_tokens, device, synced=world > 1)
        done(sum(len(chunks[other]) for other in together))
    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, found)
    merged: dict[int, str] = {}
    for share in shares:
        merged |= share
    return [merged[index] for index in range(len(conversations))]


def _chunks(lengths: list[int], at_once: AtOnce) -> list[list[int]]:
    """Indices in chunks, like lengths together; ``at_once`` says how many there are of up to so many tokens."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if not chunks or len(chunks[-1]) >= at_once(lengths[index]):  # the longest so far
            chunks.append([])
        chunks[-1].append(index)
    return chunks


def _shared(count: int) -> Iterator[tuple[int, bool, range]]:
    """This rank's chunks out of ``count``: number, whether it counts, and the numbers of all ranks in this round.

    ZeRO-3 gathers weights in every forward pass, so all ranks must make the same number of calls: a rank that has none
    left in the last round takes that round's last one too, for company.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    for start in range(0, count, world):
        together = range(start, min(start + world, count))
        yield min(start + rank, together[-1]), start + rank < count, together


def _generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, batch: Batch, limit: int, device: torch.device, synced: bool
) -> dict[int, str]:
    length = max(len(ids) for _, ids in batch)
    pad = int(tokenizer.pad_token_id)
    ids = torch.tensor([[pad] * (length - len(row)) + row for _, row in batch], device=device)  # (B, T)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for _, row in batch], device=device)  # (B, T)
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    ends = generation.end_ids(tokenizer, inner)
    settings = GenerationConfig(
        max_new_tokens=limit, do_sample=False, pad_token_id=pad, eos_token_id=ends, use_cache=True
    )
    with generation.greedy(inner):
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=synced)
    texts = tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
    return {index: text for (index, _), text in zip(batch, texts, strict=True)}
