"""Scores on held-out records: loss, exact match, accuracy. Every rank scores its share.

Shapes: B records of a batch, T tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hydraft.config import DataConfig
from hydraft.data.batch import Collator
from hydraft.data.encode import IGNORE, Example, encode_prompt
from hydraft.data.formats import Record

Scores = dict[str, float]
Batch = list[tuple[int, list[int]]]
"""(index of the record, prompt ids) pairs."""

BATCH_SIZE = 32


def spread(records: list[Record], limit: int | None) -> list[Record]:
    """``limit`` of the records, evenly over the file; all of them for None."""
    if limit is None or limit >= len(records):
        return records
    return [records[index * len(records) // limit] for index in range(limit)]


@torch.no_grad()
def held_out_loss(
    model: torch.nn.Module, examples: list[Example], pad_id: int, device: torch.device, batch_size: int
) -> float:
    """Mean cross-entropy of the trained tokens of ``examples``, each token weighing the same, in nats.

    ``batch_size`` records at a time on each rank: what training fits, this fits.
    """
    collate = Collator(pad_id)
    rank, world = dist.get_rank(), dist.get_world_size()
    total = torch.zeros(2, dtype=torch.float64, device=device)
    blank: Example = {"input_ids": [pad_id], "labels": [IGNORE]}
    for start in range(0, len(examples), batch_size * world):
        mine = examples[start + rank : start + batch_size * world : world] or [blank]
        batch = {key: value.to(device) for key, value in collate(mine).items()}
        labels = batch.pop("labels")[:, 1:]  # (B, T - 1)
        logits = model(**batch).logits[:, :-1].float()  # (B, T - 1, V)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        total += torch.stack([loss.double(), (labels != IGNORE).sum().double()])
    dist.all_reduce(total)
    return float(total[0] / total[1])


@torch.no_grad()
def answers(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    records: list[Record],
    data: DataConfig,
    device: torch.device,
    done: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Greedy answers to every record, gathered over the ranks; ``done(n)`` is told as n more are ready.

    ZeRO-3 gathers weights in every forward pass, so all ranks make the same number of ``generate`` calls.
    """
    world = dist.get_world_size()
    prompts = [encode_prompt(record, tokenizer, data.template)[-data.max_length :] for record in records]
    by_length = sorted(range(len(records)), key=lambda index: len(prompts[index]))
    chunks = [by_length[start : start + BATCH_SIZE] for start in range(0, len(by_length), BATCH_SIZE)]
    chunks += [chunks[-1]] * (-len(chunks) % world)  # the same again, where ranks would run out
    found: dict[int, str] = {}
    for chunk in chunks[dist.get_rank() :: world]:
        batch = [(index, prompts[index]) for index in chunk]
        found |= _generate(model, tokenizer, batch, data.eval_max_new_tokens, device, synced=world > 1)
        done(len(chunk) * world)
    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, found)
    merged: dict[int, str] = {}
    for share in shares:
        merged |= share
    return [merged[index] for index in range(len(records))]


def _generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, batch: Batch, limit: int, device: torch.device, synced: bool
) -> dict[int, str]:
    length = max(len(ids) for _, ids in batch)
    pad = int(tokenizer.pad_token_id)
    ids = torch.tensor([[pad] * (length - len(row)) + row for _, row in batch], device=device)  # (B, T)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for _, row in batch], device=device)  # (B, T)
    settings = GenerationConfig(
        max_new_tokens=limit, do_sample=False, pad_token_id=pad, eos_token_id=tokenizer.eos_token_id, use_cache=True
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=synced)
    texts = tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
    return {index: text for (index, _), text in zip(batch, texts, strict=True)}


def score(records: list[Record], predictions: list[str]) -> Scores:
    """Exact match over all records and for each ``task``; accuracy for the classification task ``sentiment``.

    Exact match compares the stripped texts. A prediction is a class if it names that class and no other; an answer that
    names none is wrong.
    """
    pairs = list(zip(records, predictions, strict=True))
    scores = {"exact_match": _share([_matches(record, text) for record, text in pairs])}
    for task in sorted({record["task"] for record in records if "task" in record}):
        of_task = [(record, text) for record, text in pairs if record.get("task") == task]
        scores[f"{task}_exact_match"] = _share([_matches(record, text) for record, text in of_task])
        if task == "sentiment":
            classes = {record["output"] for record, _ in of_task}
            named = [{name for name in classes if name in text} == {record["output"]} for record, text in of_task]
            scores["sentiment_accuracy"] = _share(named)
    return scores


def _matches(record: Record, text: str) -> bool:
    return text.strip() == str(record["output"]).strip()


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)
