"""How the next tokens of a batch are chosen: each request by its own settings, whatever runs beside it.

transformers' continuous batching asks a list of logits processors what to make of a batch's scores, and takes the largest.
``Batch`` is such a list. It draws each request's token itself, with that request's own random numbers, so that a seed gives
the same answer alone and in company. It also notes which adapter each row of the batch belongs to, and ends what is not
wanted any more: such a request gets its end token next.

Shapes: R rows, one a request that gets a token; V tokens of the vocabulary.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

COLDEST = 1e-4
"""Below this temperature the likeliest token is taken: scores divided by less overflow."""


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens chosen."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: str | None = None
    """What its random numbers start from; None for others each time."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens to tell of, beside the chosen one; None to tell of none."""
    presence_penalty: float = 0.0
    """Taken off the scores of tokens that were said."""
    frequency_penalty: float = 0.0
    """The same for each time they were said."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the scores of tokens."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a chosen token was, before any setting: natural logarithms of probabilities at temperature 1."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and theirs."""


@dataclass
class Draw:
    """One request's choices while it runs. The batch's thread writes, but for ``unwanted``."""

    sampling: Sampling
    adapter: str
    """Whose weights it runs on; ``__base__`` for none."""
    end: int
    """The token that ends it."""
    unwanted: bool = False
    """Set from any thread: no one waits for the rest."""
    likelihoods: list[Likelihood] = field(default_factory=list)
    """One a token, where they are asked for."""
    said: dict[int, int] = field(default_factory=dict)
    """How often each token was chosen."""

    def __post_init__(self) -> None:
        """Seed the random numbers."""
        self.random = random.Random(self.sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.sampling.temperature < COLDEST

    @property
    def plain(self) -> bool:
        """Whether the largest score decides and nothing is told of it."""
        s = self.sampling
        changed = s.presence_penalty or s.frequency_penalty or s.logit_bias
        return self.greedy and s.top_logprobs is None and not changed and not self.unwanted


class Batch(ContinuousBatchingLogitsProcessorList):
    """What continuous batching asks for the next tokens of a batch."""

    def __init__(self, vocabulary: int, drop: Callable[[Any], None]) -> None:
        """``vocabulary``: tokens that are real, the head may have more rows. ``drop`` ends a request whose prompt is not read yet."""
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.supported_keys = {"draw": Draw}
        self.vocabulary = vocabulary
        self.drop = drop
        self.adapters: list[str] = []
        """Of every token of the batch, in order: the adapter it is read with."""
        self.last: list[str] = []
        """Of every row that gets a token."""
        self.draws: list[Draw] = []

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Note who is in the next batch; nothing of it has to be a tensor."""
        every = [(request, request.state.logit_processor_kwargs["draw"]) for request in requests_in_batch]
        self.adapters = [draw.adapter for request, draw in every for _ in range(request.query_length)]
        self.draws = [draw for request, draw in every if request.has_new_token]
        self.last = [draw.adapter for draw in self.draws]
        for request, draw in every:
            if draw.unwanted and not request.has_new_token:
                self.drop(request.state)
        return arg_storage

    def __call__(  # type: ignore[override]
        self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        """Scores whose largest is the token that each row gets."""
        if all(draw.plain for draw in self.draws):
            return scores
        rows = scores[: len(self.draws), : self.vocabulary].clone()  # (R, V); what comes after belongs to no request
        told = _likelihoods(rows, self.draws)
        _adjust(rows, self.draws)
        tokens = _choose(rows, self.draws).tolist()
        for draw, token, likelihood in zip(self.draws, tokens, told, strict=True):
            draw.said[token] = draw.said.get(token, 0) + 1
            if likelihood is not None:
                draw.likelihoods.append(likelihood(token))
        kept = [draw.end if draw.unwanted else token for draw, token in zip(self.draws, tokens, strict=True)]
        decided = torch.zeros_like(scores)
        decided[list(range(len(kept))), kept] = 1
        return decided


def _likelihoods(rows: torch.Tensor, draws: list[Draw]) -> list[Callable[[int], Likelihood] | None]:
    """For each row what tells of its token, once there is one; None where no one asked."""
    found: list[Callable[[int], Likelihood] | None] = []
    for row, draw in zip(rows, draws, strict=True):
        count = draw.sampling.top_logprobs
        if count is None:
            found.append(None)
            continue
        logprobs = row.log_softmax(-1)  # (V,)
        values, ids = logprobs.topk(count)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        found.append(lambda token, logprobs=logprobs, top=top: Likelihood(float(logprobs[token]), top))  # type: ignore[misc]
    return found


def _adjust(rows: torch.Tensor, draws: list[Draw]) -> None:
    """Penalties and biases, in place, as OpenAI's reference has them."""
    for row, draw in zip(rows, draws, strict=True):
        s = draw.sampling
        if (s.presence_penalty or s.frequency_penalty) and draw.said:
            ids = torch.tensor(list(draw.said), device=row.device)
            counts = torch.tensor(list(draw.said.values()), device=row.device, dtype=row.dtype)
            row[ids] -= s.presence_penalty + s.frequency_penalty * counts
        for token, bias in s.logit_bias:
            row[token] += bias


def _choose(rows: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
    """The token of each row: the likeliest, or where its random number falls in its distribution.  (R,)"""
    tokens = rows.argmax(-1)
    for nucleus in (False, True):  # how a row is drawn depends on its own settings alone
        drawn = [i for i, d in enumerate(draws) if not d.greedy and (d.sampling.top_p < 1) is nucleus]
        if not drawn:
            continue
        temperatures = rows.new_tensor([draws[i].sampling.temperature for i in drawn])
        numbers = rows.new_tensor([draws[i].random.random() for i in drawn], dtype=torch.float64)
        probabilities = (rows[drawn] / temperatures[:, None]).softmax(-1).double()
        order = None
        if nucleus:
            top_p = rows.new_tensor([draws[i].sampling.top_p for i in drawn], dtype=torch.float64)
            probabilities, order = probabilities.sort(-1, descending=True)
            ahead = probabilities.cumsum(-1) - probabilities  # what likelier tokens have together
            beyond = ahead >= top_p[:, None]
            beyond[:, 0] = False  # the likeliest stays, even with a top_p of 0
            probabilities[beyond] = 0
        reach = probabilities.cumsum(-1)
        place = torch.searchsorted(reach, numbers[:, None] * reach[:, -1:], right=True).clamp(max=rows.shape[-1] - 1)
        tokens[drawn] = (place if order is None else order.gather(-1, place))[:, 0]
    return tokens
