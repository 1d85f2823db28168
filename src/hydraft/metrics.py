"""Scores on held-out records: loss, and answers held against their references. Every rank scores its share.

Shapes: B records of a batch, T tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hydraft.choices import Task
from hydraft.config import DataConfig
from hydraft.data.batch import Padded
from hydraft.data.encode import IGNORE, Example, encode, prompt_ids
from hydraft.data.formats import Conversation

Scores = dict[str, float]
Batch = list[tuple[int, list[int]]]
"""(index of the record, prompt ids) pairs."""

BATCH_SIZE = 32


@dataclass
class HeldOut:
    """Records to score a model on, before, during and after training."""

    conversations: list[Conversation]
    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    device: torch.device
    micro_batch_size: int
    """Records at a time when the loss is taken: what training fits, this fits."""

    def __post_init__(self) -> None:
        self.examples, _ = encode(self.conversations, self.tokenizer, self.data)
        self.asked = [conversation for conversation in self.conversations if conversation.plain is None]
        """Those that ask something."""

    def score(self, model: torch.nn.Module, done: Callable[[int], None] = lambda count: None) -> Scores:
        """Held-out loss of all records and scores of the answers; every rank must ask, and all get the same."""
        if not self.conversations:
            return {}
        model.eval()
        pad = int(self.tokenizer.pad_token_id)
        scores = {"loss": held_out_loss(model, self.examples, pad, self.device, self.micro_batch_size)}
        if self.asked:
            predictions = answers(model, self.tokenizer, self.asked, self.data, self.device, done)
            scores |= score(self.asked, predictions, self.data.task)
        model.train()
        return scores


@torch.no_grad()
def held_out_loss(
    model: torch.nn.Module, examples: list[Example], pad_id: int, device: torch.device, batch_size: int
) -> float:
    """Mean cross-entropy of the trained tokens of ``examples``, each token weighing the same, in nats."""
    collate = Padded(pad_id)
    rank, world = dist.get_rank(), dist.get_world_size()
    total = torch.zeros(2, dtype=torch.float64, device=device)
    blank: Example = {"input_ids": [pad_id], "labels": [IGNORE]}
    for start in range(0, len(examples), batch_size * world):
        mine = examples[start + rank : start + batch_size * world : world] or [blank]
        batch = {key: value.to(device) for key, value in collate([mine]).items()}
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
    conversations: list[Conversation],
    data: DataConfig,
    device: torch.device,
    done: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Greedy answers to every conversation's last question, gathered over the ranks; ``done(n)`` as n more are ready.

    ZeRO-3 gathers weights in every forward pass, so all ranks make the same number of ``generate`` calls.
    """
    world = dist.get_world_size()
    prompts = [prompt_ids(conversation, tokenizer, data)[-data.max_length :] for conversation in conversations]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
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
    return [merged[index] for index in range(len(conversations))]


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


def score(conversations: list[Conversation], predictions: list[str], task: Task = Task.auto) -> Scores:
    """Scores of the answers, over all and for each task.

    * all: exact match of the stripped texts
    * sentiment: accuracy; an answer is a class if it names that class and no other
    * summary and general: character BLEU-4 and ROUGE-1/2/L over jieba's words (F-measure)
    * any other task: exact match

    An empty answer is wrong in every score. ``task`` other than ``auto`` stands for every record's own.
    """
    pairs = list(zip(conversations, predictions, strict=True))
    scores = {"exact_match": _share([_matches(asked, text) for asked, text in pairs])}
    tasks: dict[str, list[tuple[Conversation, str]]] = {}
    for asked, text in pairs:
        name = asked.task if task is Task.auto else task.value
        if name:
            tasks.setdefault(name, []).append((asked, text))
    for name, members in sorted(tasks.items()):
        references, texts = [asked.reference for asked, _ in members], [text for _, text in members]
        if name == "sentiment":
            scores["sentiment_accuracy"] = accuracy(references, texts)
        else:
            scores[f"{name}_exact_match"] = _share([_matches(asked, text) for asked, text in members])
        if name in ("summary", "general"):
            scores[f"{name}_bleu4"] = character_bleu(references, texts)
            scores |= {f"{name}_{kind}": value for kind, value in rouge(references, texts).items()}
    return scores


def accuracy(references: list[str], predictions: list[str]) -> float:
    """Share of predictions that name their reference's class and no other class of the references."""
    classes = set(references)
    return _share(
        [{c for c in classes if c in text} == {right} for right, text in zip(references, predictions, strict=True)]
    )


def character_bleu(references: list[str], predictions: list[str]) -> float:
    """Corpus BLEU-4 over characters (Papineni et al. 2002), as sacrebleu computes it, from 0 to 1."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize="char", force=True)
    return float(bleu.corpus_score([text.strip() for text in predictions], [references]).score) / 100


def rouge(references: list[str], predictions: list[str]) -> Scores:
    """Mean F-measure of ROUGE-1, -2 and -L (Lin 2004) over the words jieba cuts, as rouge-score computes it."""
    scorer = _rouge_scorer()
    rows = [scorer.score(right, text) for right, text in zip(references, predictions, strict=True)]
    return {
        kind.lower(): sum(row[kind].fmeasure for row in rows) / len(rows) for kind in ("rouge1", "rouge2", "rougeL")
    }


@cache
def _rouge_scorer() -> Any:
    import jieba
    from rouge_score.rouge_scorer import RougeScorer

    jieba.setLogLevel(60)  # it announces that it reads its dictionary

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return [word for word in jieba.cut(text) if word.strip()]

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())


def _matches(asked: Conversation, text: str) -> bool:
    return text.strip() == asked.reference.strip()


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)
