"""Sampling of the next tokens of a batch, each request with its own settings and random numbers.

transformers' continuous batching passes a batch's scores through a list of logits processors and takes the argmax.
``BatchSampler`` replaces that list. It samples each request's token itself, from that request's own random generator, so that a
seed gives the same answer whatever else is in the batch. It also records the adapter of each row, and gives a cancelled request
its end token.

On a GPU nothing here synchronises, except for logprobs if a request wants them: the tokens stay on the device, and transformers
copies them once per batch.

Shapes: R rows, one per request that gets a token; V tokens of the vocabulary.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from hydraft.infer.serve.rows import Rows, on_device

MIN_TEMPERATURE = 1e-4
"""Below this temperature decoding is greedy: scores divided by less would overflow."""


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of a request."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Tokens to sample from, the likeliest ones; 0 for all."""
    min_p: float = 0.0
    """The least probability of a sampled token, as a share of the likeliest token's."""
    seed: str | None = None
    """The seed of its random generator; None for a random one."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens to return logprobs for, besides the sampled one; None for no logprobs."""
    presence_penalty: float = 0.0
    """Subtracted from the scores of tokens that were generated before."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time a token was generated."""
    repetition_penalty: float = 1.0
    """Divides positive scores, and multiplies negative ones, of tokens of the prompt and of those generated before."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the scores of tokens."""

    @property
    def truncated(self) -> bool:
        """Whether only some of the likeliest tokens are sampled from."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True)
class TokenLogprob:
    """The natural logarithm of a sampled token's probability, at temperature 1 and before any other setting."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their logprobs."""


@dataclass
class RequestSampler:
    """The sampling state of one request. Only the batch thread writes it, except for ``cancelled``."""

    sampling: Sampling
    adapter: str
    """The adapter that it uses; ``__base__`` for none."""
    end: int
    """The end token that a cancelled request gets."""
    prompt: Sequence[int] = ()
    """The prompt's tokens, for ``repetition_penalty``."""
    cancelled: bool = False
    """Set from any thread: its remaining tokens are not wanted."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """One per token, if requested."""
    counts: torch.Tensor | None = None
    """How often each token was generated, if penalties need it: (V,)"""
    seen: torch.Tensor | None = None
    """Whether a token is in the prompt, if ``repetition_penalty`` needs it: (V,)"""
    bias: tuple[torch.Tensor, torch.Tensor] | None = None
    """``logit_bias`` on the device of the scores: token ids and values."""

    def __post_init__(self) -> None:
        """Seed the random numbers."""
        self.random = random.Random(self.sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is chosen."""
        return self.sampling.temperature < MIN_TEMPERATURE

    @property
    def penalised(self) -> bool:
        """Whether its scores depend on the tokens generated before."""
        s = self.sampling
        return bool(s.presence_penalty or s.frequency_penalty) or s.repetition_penalty != 1

    @property
    def plain(self) -> bool:
        """Whether the argmax of the unchanged scores is its token, without logprobs."""
        changed = self.penalised or self.sampling.logit_bias
        return self.greedy and self.sampling.top_logprobs is None and not changed and not self.cancelled


class BatchSampler(ContinuousBatchingLogitsProcessorList):
    """The logits processor of continuous batching that samples the next tokens of a batch."""

    def __init__(self, vocabulary: int, drop: Callable[[Any], None]) -> None:
        """``vocabulary``: tokens of the tokenizer; the head may have more rows. ``drop`` cancels a request during its prefill."""
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.supported_keys = {"sampler": RequestSampler}
        self.vocabulary = vocabulary
        self.drop = drop
        self.rows = Rows([])
        """The adapter of every token of the batch, in order."""
        self.last = Rows([])
        """The adapter of every row that gets a new token."""
        self.samplers: list[RequestSampler] = []

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Record the requests of the next batch; no tensors are needed."""
        every = [(request, request.state.logit_processor_kwargs["sampler"]) for request in requests_in_batch]
        self.rows = Rows([sampler.adapter for request, sampler in every for _ in range(request.query_length)])
        self.samplers = [sampler for request, sampler in every if request.has_new_token]
        self.last = Rows([sampler.adapter for sampler in self.samplers])
        for request, sampler in every:
            if sampler.cancelled and not request.has_new_token:
                self.drop(request.state)
        return arg_storage

    def __call__(  # type: ignore[override]
        self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        """Scores whose argmax is the sampled token of each row."""
        if all(sampler.plain for sampler in self.samplers):
            return scores
        rows = scores[: len(self.samplers), : self.vocabulary].clone()  # (R, V); further rows belong to no request
        wanted = [i for i, sampler in enumerate(self.samplers) if sampler.sampling.top_logprobs is not None]
        logprobs = _select(rows, wanted).log_softmax(-1) if wanted else None  # before the settings change them
        _adjust(rows, self.samplers)
        tokens = _sample(rows, self.samplers)
        if logprobs is not None:
            _record_logprobs([self.samplers[i] for i in wanted], logprobs, _select(tokens, wanted))
        for i, sampler in enumerate(self.samplers):
            if sampler.counts is not None:
                sampler.counts.index_add_(0, tokens[i : i + 1], sampler.counts.new_ones(1))
            if sampler.cancelled:
                tokens[i] = sampler.end
        result = torch.zeros_like(scores)
        result[: len(rows)].scatter_(1, tokens[:, None], 1)
        return result


def _select(rows: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
    """The ``wanted`` rows; ``rows`` itself if these are all."""
    if len(wanted) == len(rows):
        return rows
    return rows[on_device(list(wanted), torch.long, rows.device)]


def _record_logprobs(samplers: list[RequestSampler], logprobs: torch.Tensor, tokens: torch.Tensor) -> None:
    """Record each row's logprob and those of the likeliest tokens.  logprobs: (R, V), tokens: (R,)"""
    counts = [sampler.sampling.top_logprobs or 0 for sampler in samplers]
    values, ids = logprobs.topk(max(counts))
    chosen = logprobs.gather(-1, tokens[:, None])
    read = torch.cat(
        [chosen.double(), values.double(), ids.double()], -1
    ).tolist()  # one copy for all rows, which waits for the device
    for sampler, count, (logprob, *rest) in zip(samplers, counts, read, strict=True):
        likeliest = zip(rest[max(counts) :], rest[: max(counts)], strict=True)
        sampler.logprobs.append(TokenLogprob(logprob, tuple((int(token), value) for token, value in likeliest)[:count]))


def _adjust(rows: torch.Tensor, samplers: list[RequestSampler]) -> None:
    """Apply penalties and biases in place.

    Presence, frequency and biases are by the formulas of OpenAI's API reference, repetition by that of CTRL (arXiv:1909.05858, 4.1)
    with the prompt's tokens counted as well, as vLLM does.
    """
    for row, sampler in zip(rows, samplers, strict=True):
        s = sampler.sampling
        if sampler.penalised:
            if sampler.counts is None:
                sampler.counts = torch.zeros_like(row)
            if s.repetition_penalty != 1:
                if sampler.seen is None:
                    sampler.seen = torch.zeros_like(row, dtype=torch.bool)
                    sampler.seen[on_device(list(sampler.prompt), torch.long, row.device)] = True
                changed = torch.where(row > 0, row / s.repetition_penalty, row * s.repetition_penalty)
                row.copy_(torch.where(sampler.seen | (sampler.counts > 0), changed, row))
            row -= s.presence_penalty * (sampler.counts > 0) + s.frequency_penalty * sampler.counts
        if s.logit_bias:
            if sampler.bias is None:
                pairs = on_device([list(pair) for pair in s.logit_bias], torch.double, row.device)
                sampler.bias = pairs[:, 0].long(), pairs[:, 1].to(row.dtype)
            row.index_add_(0, *sampler.bias)


def _sample(rows: torch.Tensor, samplers: list[RequestSampler]) -> torch.Tensor:
    """The token of each row: the argmax, or by inverting the cumulative distribution at its random number.  (R,)"""
    tokens = rows.argmax(-1)
    for truncated in (False, True):  # so that a row's token depends on its own settings only
        sampled = [i for i, d in enumerate(samplers) if not d.greedy and d.sampling.truncated is truncated]
        if not sampled:
            continue
        settings = [
            [i, d.sampling.temperature, d.random.random(), d.sampling.top_p, d.sampling.top_k, d.sampling.min_p]
            for i, d in enumerate(samplers)
            if i in sampled
        ]
        columns = on_device(settings, torch.double, rows.device)[:, :, None].unbind(1)
        index, temperatures, numbers, *limits = columns  # (n, 1) each
        picked = index[:, 0].long()
        probabilities = (rows[picked] / temperatures.to(rows.dtype)).softmax(-1).double()
        order = None
        if truncated:
            probabilities, order = probabilities.sort(-1, descending=True)
            _truncate(probabilities, *limits)
        cumulative = probabilities.cumsum(-1)
        place = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True).clamp(max=rows.shape[-1] - 1)
        tokens[picked] = (place if order is None else order.gather(-1, place))[:, 0]
    return tokens


def _truncate(probabilities: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor, min_p: torch.Tensor) -> None:
    """Zero the unlikely ones of ``probabilities`` (n, V), which fall along each row, in place. Limits: (n, 1).

    As in vLLM, ``top_p`` is a share of what ``min_p`` and ``top_k`` leave. The likeliest token is kept.
    """
    ranks = torch.arange(probabilities.shape[-1], device=probabilities.device)
    beyond = ((top_k > 0) & (ranks >= top_k)) | (probabilities < min_p * probabilities[:, :1])
    beyond[:, 0] = False
    probabilities.masked_fill_(beyond, 0)
    ahead = probabilities.cumsum(-1) - probabilities  # the probability of all likelier tokens
    beyond = ahead >= top_p * probabilities.sum(-1, keepdim=True)
    beyond[:, 0] = False
    probabilities.masked_fill_(beyond, 0)
