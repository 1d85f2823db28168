"""Scores of classes without generation: the log-likelihood of each of ``data.labels`` as the answer to a held-out record.

A label is rendered and tokenized as the answer of the record, as in training, so its log-likelihood is minus the loss that the record
would have with it: the sum of log p over the label's tokens and the token that ends the answer. The label with the highest sum is the
answer of the model.

That is ``acc`` of the output type ``multiple_choice`` in lm-evaluation-harness (``process_results`` in lm_eval/api/task.py), except
for the token that ends the answer, which is not part of a choice there. Without it a label that another one begins with (好, 好的)
could never be less likely than that one. ``accuracy_norm`` is its ``acc_norm``: each sum is divided by the characters of the label.

The prompt of a record is computed once, and the labels after it (``models/shared_prompt.py``). With a model for which that is not
possible, each label is a row of its own with the prompt in it, so a record costs as many rows as there are labels.

Shapes: N records, K labels, N * K rows in the order of the records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import Task, Thinking
from hydraft.config.data import DataConfig
from hydraft.data.batch import Padded
from hydraft.data.label_names import classes
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation
from hydraft.data.tokenize import Example, answered, truncate
from hydraft.errors import ConfigError
from hydraft.evaluation.batches import BatchSizes, Done, chunks, of_this_rank
from hydraft.evaluation.metrics import Scores, macro_f1
from hydraft.models import loss_scored, shared_prompt


@dataclass(frozen=True)
class Choices:
    """The answers that a model chose among the labels, and their scores."""

    answers: list[str]  # (N,)
    """Empty where the log-likelihoods are not finite; that counts as wrong."""
    scores: Scores
    """Over all records."""
    each: list[Scores]  # (N,)


def is_choice(conversation: Conversation, data: DataConfig) -> bool:
    """Whether the answer to a record is chosen among ``data.labels``: its reference is one of them, and has no thoughts."""
    if conversation.plain is not None or conversation.reference.strip() not in classes(data.labels):
        return False
    answer = conversation.turns[-1]
    return not answer.tool_calls and (not answer.reasoning or data.thinking is Thinking.off)


class LabelScorer:
    """Computes the log-likelihood of every label for each of N records, shared out over the ranks."""

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        device: torch.device,
        sizes: BatchSizes,
    ) -> None:
        """Encode the rows.

        Raises:
            ConfigError: a label does not fit into ``data.max_length``.
        """
        self.conversations = list(conversations)
        self.labels = classes(data.labels)
        self.task = data.task
        self.device = device
        self.sizes = sizes
        self.tokenizer = tokenizer
        self.rows: list[Example] = []
        """Row ``i * K + k`` has label ``k`` as the answer to record ``i``."""
        for conversation in self.conversations:
            examples = [answered(conversation, label, tokenizer, data) for label in self.labels]
            self.rows += _truncated(examples, data.max_length)

    @torch.no_grad()
    def log_likelihoods(self, model: torch.nn.Module, done: Done) -> list[list[float]]:
        """The sums of log p, (N, K), in nats. Every rank must call it; all get the same."""
        shared = self._shared_prompts() if shared_prompt.is_supported(model) else None
        sums = self._of_rows(model, done) if shared is None else self._after_prompts(model, shared, done)
        dist.all_reduce(sums)  # exact: each number is added to zeros
        return sums.view(len(self.conversations), len(self.labels)).tolist()

    def _shared_prompts(self) -> list[list[int]] | None:
        """The tokens before the label, of each record; None if they are not the same for all labels of every record."""
        prompts = [row["input_ids"][: len(row["input_ids"]) - _trained(row)] for row in self.rows]
        count = len(self.labels)
        found = prompts[::count]
        same = all(prompt == found[index // count] for index, prompt in enumerate(prompts))
        return found if same and all(found) else None

    def _after_prompts(self, model: torch.nn.Module, prompts: list[list[int]], done: Done) -> torch.Tensor:
        """The sums (N, K) of this rank's records, from one pass over the prompts of a batch and one for each label."""
        pad_id, count = int(self.tokenizer.pad_token_id), len(self.labels)
        answers = [row["input_ids"][-_trained(row) :] for row in self.rows]
        parts = self._batches([len(prompt) for prompt in prompts])
        sums = torch.zeros(len(prompts), count, dtype=torch.float64, device=self.device)
        for number, counts, current in of_this_rank(len(parts)):
            some = parts[number]
            labels = [answers[index * count : (index + 1) * count] for index in some]
            own = [prompts[index] for index in some]
            found = shared_prompt.log_likelihoods(model, own, labels, pad_id, self.device)
            if counts:
                sums[some] = found.to(sums)
            done(sum(len(parts[other]) * count for other in current))
        return sums

    def _batches(self, lengths: list[int]) -> list[list[int]]:
        """Indices in batches; ``lengths`` are those of the prompts, or of the rows with a label."""
        longest = max(map(_trained, self.rows), default=0)
        return chunks(lengths, lambda length: self.sizes.rows(length, longest))

    def _of_rows(self, model: torch.nn.Module, done: Done) -> torch.Tensor:
        """The sums (N * K,) of this rank's rows, computed as for the loss."""
        collate = Padded(int(self.tokenizer.pad_token_id))
        parts = self._batches([len(row["input_ids"]) for row in self.rows])
        sums = torch.zeros(len(self.rows), dtype=torch.float64, device=self.device)
        for number, counts, current in of_this_rank(len(parts)):
            peers = [[self.rows[index] for index in parts[other]] for other in current]
            batch = collate([[row] for row in peers[number - current.start]])
            batch = {key: value if key == "labels" else value.to(self.device) for key, value in batch.items()}
            found = loss_scored.losses(model, batch, max(map(loss_scored.chunks_of, peers)))
            if counts:
                sums[parts[number]] = -found.of_rows.to(sums)
            done(sum(map(len, peers)))
        return sums

    def choices(self, model: torch.nn.Module, done: Done) -> Choices:
        """The label that the model chooses for each record, and the scores."""
        return chosen(self.conversations, self.labels, self.log_likelihoods(model, done), self.task)


def chosen(
    conversations: Sequence[Conversation],
    labels: Sequence[str],
    log_likelihoods: Sequence[Sequence[float]],
    task: Task = Task.auto,
) -> Choices:
    """The choices by log-likelihoods (N, K), and their scores.

    * ``accuracy``: the label with the highest log-likelihood is the reference; for each task also ``<task>_accuracy``
    * ``accuracy_norm``: the same with the log-likelihood per character of the label
    * ``macro_f1``: the mean over the labels of the F1 of each; a set of answers has it, a record none
    """
    widths = [float(len(label)) for label in labels]
    answers = [_most_likely(labels, row) for row in log_likelihoods]
    normed = [_most_likely(labels, [x / n for x, n in zip(row, widths, strict=True)]) for row in log_likelihoods]
    references = [conversation.reference.strip() for conversation in conversations]
    each: list[Scores] = [
        {"accuracy": float(answer == right), "accuracy_norm": float(norm == right)}
        for answer, norm, right in zip(answers, normed, references, strict=True)
    ]
    for own, conversation in zip(each, conversations, strict=True):
        name = conversation.task if task is Task.auto else task.value
        if name:
            own[f"{name}_accuracy"] = own["accuracy"]
    scores = {name: fmean(own[name] for own in each) for name in ("accuracy", "accuracy_norm")}
    scores["macro_f1"] = macro_f1(references, answers)
    for name in sorted({name for own in each for name in own} - scores.keys()):
        scores[name] = fmean(own[name] for own in each if name in own)
    return Choices(answers, scores, each)


def names(conversations: Sequence[Conversation], data: DataConfig) -> list[str]:
    """The names of the scores of these records."""
    labels = classes(data.labels)
    return list(chosen(conversations, labels, [[0.0] * len(labels)] * len(conversations), data.task).scores)


def _most_likely(labels: Sequence[str], values: Sequence[float]) -> str:
    if any(math.isnan(value) for value in values):
        return ""
    return labels[max(range(len(labels)), key=values.__getitem__)]  # the first one if two are equal


def _truncated(examples: list[Example], max_length: int) -> list[Example]:
    """The rows of a record, whose prompts are cut alike: to what the longest label leaves of ``max_length``."""
    answers = [_trained(example) for example in examples]
    longest = max(answers)
    found = []
    for example, answer in zip(examples, answers, strict=True):
        kept, lost = truncate(example, max_length - longest + answer)
        if lost.answer_tokens:
            raise ConfigError(
                f"data.max_length={max_length}: a label of data.labels has {answer} tokens, which leaves too little for the prompt: "
                f"use data.max_length={4 * longest} or more"
            )
        found.append(kept)
    return found


def _trained(example: Example) -> int:
    return sum(label != IGNORE for label in example["labels"])
