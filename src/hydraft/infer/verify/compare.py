"""Finds the first token at which a server's answer leaves the model's own, and how far apart the model holds the two tokens.

Servers return text, and not all return tokens. So the text decides: at the model's first token that is not in the server's text, the
server's token is the likeliest one (by the model) with which the text goes on as the server's does.

Shapes: T tokens of an answer, V vocabulary.
"""

from dataclasses import dataclass
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import Precision
from hydraft.data import special_tokens
from hydraft.infer.verify.client import Reply
from hydraft.models.generation import read_answer

NEAR = {Precision.fp32: 1e-3, Precision.fp16: 2 * 2.0**-6, Precision.bf16: 2 * 2.0**-3}
"""Difference of two log-probabilities that rounding explains: two units in the last place of a logit between 16 and 32 (with 10 bits of
fraction in fp16, 7 in bf16). In fp32, what sums in another order differ by."""
CANDIDATES = 4096
"""Likeliest tokens among which the server's is searched."""
BROKEN = "�"
"""What an incomplete character is decoded to."""


@dataclass(frozen=True)
class Own:
    """The model's own greedy answer to a prompt."""

    prompt: list[int]
    ids: list[int]
    """With the end token, if it ended."""
    logprobs: torch.Tensor
    """Of all tokens at each position (T, V), in fp32."""


@dataclass(frozen=True)
class Difference:
    """Where a server's answer leaves the model's own."""

    position: int
    """The token, from 0."""
    ours: str
    """The rest of the model's answer from there on."""
    theirs: str
    gap: float | None
    """By how much the model holds its own token for likelier (in log-probability); None if the server's is not among the likeliest."""
    cut: bool = False
    """Whether the server ended at a limit of its own, and agrees so far."""

    def is_near(self, precision: Precision) -> bool:
        """Whether the two tokens are so nearly tied that rounding explains the choice."""
        return self.gap is not None and self.gap <= NEAR[precision]


def difference(
    own: Own, reply: Reply, tokenizer: PreTrainedTokenizerBase, ends: set[int], limit: int
) -> Difference | None:
    """The first difference of a reply from the model's own answer; None if they are equal."""
    answer, whole = read_answer(tokenizer, own.prompt, own.ids), _text(own.ids, tokenizer)
    parts = [(_bare(answer.thoughts), _bare(reply.thoughts)), (_bare(answer.text), _bare(reply.text))]
    found = next(((ours, theirs) for ours, theirs in parts if ours != theirs), None)
    if found is None:
        return None
    ours, theirs = found
    start = max(0, whole.find(ours))
    served = whole[:start] + theirs
    same = _common(whole, served)
    position = next(
        (index for index in range(len(own.ids)) if len(_text(own.ids[: index + 1], tokenizer).rstrip(BROKEN)) > same),
        len(own.ids) - 1,
    )
    ended = same >= len(served)
    cut = ended and reply.finish == "length" and (reply.tokens or 0) < limit
    before = _text(own.ids[:position], tokenizer).rstrip(BROKEN)
    gap = _gap(own, position, ends if ended else None, served, tokenizer)
    return Difference(position, whole[len(before) :], served[len(before) :], gap, cut)


def _gap(
    own: Own, position: int, ends: set[int] | None, served: str, tokenizer: PreTrainedTokenizerBase
) -> float | None:
    """The log-probability of the model's token at ``position`` minus that of the server's. ``ends``: its tokens, if it ended there."""
    row, mine = own.logprobs[position], own.ids[position]  # (V,)
    if ends is not None:
        others = [float(row[token]) for token in ends if token != mine]
        return float(row[mine]) - max(others) if others else None
    before = own.ids[:position]
    shared = len(_text(before, tokenizer).rstrip(BROKEN))
    for token in row.topk(min(CANDIDATES, len(row))).indices.tolist():
        text = _text([*before, token], tokenizer)
        if token != mine and not text.endswith(BROKEN) and len(text) > shared and served.startswith(text):
            return float(row[mine] - row[token])
    return None


def logprob_differences(own: Own, reply: Reply, tokenizer: PreTrainedTokenizerBase, until: int | None) -> list[float]:
    """Absolute differences of the log-probabilities of the tokens that both answers begin with, before position ``until``."""
    found = []
    for position, (token, served) in enumerate(zip(own.ids[:until], reply.logprobs, strict=False)):
        if str(tokenizer.decode([token])) != served.text:
            break  # the server counts its tokens in another way
        found.append(abs(float(own.logprobs[position, token]) - served.logprob))
    return found


def mean(values: list[float]) -> float | None:
    """The mean; None of no values."""
    return fmean(values) if values else None


def _bare(text: str) -> str:
    """A text without blank space around it, and without a character that the last token leaves incomplete."""
    return text.rstrip(BROKEN).strip()


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(special_tokens.of(tokenizer).answer(ids), skip_special_tokens=True))


def _common(ours: str, theirs: str) -> int:
    """The number of characters that two texts begin with alike."""
    return next(
        (index for index, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
