"""How the next tokens of a batch are chosen: each request by its own settings, whatever runs beside it.

transformers' continuous batching asks a list of logits processors what to make of a batch's scores, and takes the largest.
``Batch`` is such a list. It draws each request's token itself, with that request's own random numbers, so that a seed gives
the same answer alone and in company. It also notes which adapter each row of the batch belongs to, and ends what is not
wanted any more: such a request gets its end token next.

On a card nothing here waits for it, but for likelihoods, where a request asks for them: what is chosen stays there, and
transformers reads it once a batch.

Shapes: R rows, one a request that gets a token; V tokens of the vocabulary.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from hydraft.infer.serve.rows import Rows, on_device

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
    said: torch.Tensor | None = None
    """How often each token was chosen, where its scores depend on that: (V,)"""
    bias: tuple[torch.Tensor, torch.Tensor] | None = None
    """``logit_bias`` where the scores are: the tokens, and what is added."""

    def __post_init__(self) -> None:
        """Seed the random numbers."""
        self.random = random.Random(self.sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.sampling.temperature < COLDEST

    @property
    def penalised(self) -> bool:
        """Whether its scores depend on what was said."""
        return bool(self.sampling.presence_penalty or self.sampling.frequency_penalty)

    @property
    def plain(self) -> bool:
        """Whether the largest score decides and nothing is told of it."""
        changed = self.penalised or self.sampling.logit_bias
        return self.greedy and self.sampling.top_logprobs is None and not changed and not self.unwanted


class Batch(ContinuousBatchingLogitsProcessorList):
    """What continuous batching asks for the next tokens of a batch."""

    def __init__(self, vocabulary: int, drop: Callable[[Any], None]) -> None:
        """``vocabulary``: tokens that are real, the head may have more rows. ``drop`` ends a request whose prompt is not read yet."""
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.supported_keys = {"draw": Draw}
        self.vocabulary = vocabulary
        self.drop = drop
        self.rows = Rows([])
        """Of every token of the batch, in order: the adapter it is read with."""
        self.last = Rows([])
        """Of every row that gets a token."""
        self.draws: list[Draw] = []

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Note who is in the next batch; nothing of it has to be a tensor."""
        every = [(request, request.state.logit_processor_kwargs["draw"]) for request in requests_in_batch]
        self.rows = Rows([draw.adapter for request, draw in every for _ in range(request.query_length)])
        self.draws = [draw for request, draw in every if request.has_new_token]
        self.last = Rows([draw.adapter for draw in self.draws])
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
        told = [i for i, draw in enumerate(self.draws) if draw.sampling.top_logprobs is not None]
        logprobs = _pick(rows, told).log_softmax(-1) if told else None  # before any setting changes them
        _adjust(rows, self.draws)
        tokens = _choose(rows, self.draws)
        if logprobs is not None:
            _tell([self.draws[i] for i in told], logprobs, _pick(tokens, told))
        for i, draw in enumerate(self.draws):
            if draw.said is not None:
                draw.said.index_add_(0, tokens[i : i + 1], draw.said.new_ones(1))
            if draw.unwanted:
                tokens[i] = draw.end
        decided = torch.zeros_like(scores)
        decided[: len(rows)].scatter_(1, tokens[:, None], 1)
        return decided


def _pick(rows: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
    """Some of the rows; all of them as they are."""
    if len(wanted) == len(rows):
        return rows
    return rows[on_device(list(wanted), torch.long, rows.device)]


def _tell(draws: list[Draw], logprobs: torch.Tensor, tokens: torch.Tensor) -> None:
    """Note how likely each row's token was, and which were the likeliest.  logprobs: (R, V), tokens: (R,)"""
    counts = [draw.sampling.top_logprobs or 0 for draw in draws]
    values, ids = logprobs.topk(max(counts))
    chosen = logprobs.gather(-1, tokens[:, None])
    read = torch.cat([chosen.double(), values.double(), ids.double()], -1).tolist()  # one for all, which is waited for
    for draw, count, (logprob, *rest) in zip(draws, counts, read, strict=True):
        likeliest = zip(rest[max(counts) :], rest[: max(counts)], strict=True)
        draw.likelihoods.append(Likelihood(logprob, tuple((int(token), value) for token, value in likeliest)[:count]))


def _adjust(rows: torch.Tensor, draws: list[Draw]) -> None:
    """Penalties and biases, in place, as OpenAI's reference has them."""
    for row, draw in zip(rows, draws, strict=True):
        s = draw.sampling
        if draw.penalised:
            if draw.said is None:
                draw.said = torch.zeros_like(row)
            row -= s.presence_penalty * (draw.said > 0) + s.frequency_penalty * draw.said
        if s.logit_bias:
            if draw.bias is None:
                pairs = on_device([list(pair) for pair in s.logit_bias], torch.double, row.device)
                draw.bias = pairs[:, 0].long(), pairs[:, 1].to(row.dtype)
            row.index_add_(0, *draw.bias)


def _choose(rows: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
    """The token of each row: the likeliest, or where its random number falls in its distribution.  (R,)"""
    tokens = rows.argmax(-1)
    for nucleus in (False, True):  # how a row is drawn depends on its own settings alone
        drawn = [i for i, d in enumerate(draws) if not d.greedy and (d.sampling.top_p < 1) is nucleus]
        if not drawn:
            continue
        settings = [
            [i, d.sampling.temperature, d.random.random(), d.sampling.top_p] for i, d in enumerate(draws) if i in drawn
        ]
        index, temperatures, numbers, top_p = on_device(settings, torch.double, rows.device)[:, :, None].unbind(
            1
        )  # (n, 1)
        picked = index[:, 0].long()
        probabilities = (rows[picked] / temperatures.to(rows.dtype)).softmax(-1).double()
        order = None
        if nucleus:
            probabilities, order = probabilities.sort(-1, descending=True)
            ahead = probabilities.cumsum(-1) - probabilities  # what likelier tokens have together
            beyond = ahead >= top_p
            beyond[:, 0] = False  # the likeliest stays, even with a top_p of 0
            probabilities.masked_fill_(beyond, 0)
        reach = probabilities.cumsum(-1)
        place = torch.searchsorted(reach, numbers * reach[:, -1:], right=True).clamp(max=rows.shape[-1] - 1)
        tokens[picked] = (place if order is None else order.gather(-1, place))[:, 0]
    return tokens
