"""Sampling depends only on a request's own settings, whatever else is in the batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper

from hydraft.infer.serve.sampler import BatchSampler, RequestSampler, Sampling

V, END = 50, 7


def choose(samplers: list[RequestSampler], scores: torch.Tensor, vocabulary: int = V) -> list[int]:
    """The tokens that are sampled for the rows."""
    batch = BatchSampler(vocabulary, drop=lambda state: None)
    requests: list[Any] = [
        SimpleNamespace(
            state=SimpleNamespace(logit_processor_kwargs={"sampler": d}), query_length=1, has_new_token=True
        )
        for d in samplers
    ]
    batch.prepare_tensor_args(requests, torch.empty(0))
    return batch(torch.empty(0), scores, torch.empty(0)).argmax(-1).tolist()[: len(samplers)]


def sampler(**settings: Any) -> RequestSampler:
    return RequestSampler(Sampling(**settings), "__base__", END)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    steps = torch.randn(20, V)
    for settings in ({}, {"top_p": 0.8}, {"temperature": 1.7, "frequency_penalty": 0.5}):
        alone, batched = sampler(seed="3", **settings), sampler(seed="3", **settings)
        others = [sampler(temperature=0), sampler(seed="4"), sampler(top_p=0.5), sampler(top_logprobs=3)]
        for step in steps:
            rows = torch.cat([torch.randn(2, V), step[None], torch.randn(3, V)])  # one more row than requests
            chosen = choose([*others[:2], batched, *others[2:]], rows)
            assert chosen[2] == choose([alone], step[None])[0]
            assert chosen[0] == rows[0].argmax()


@pytest.mark.parametrize("top_p", [1.0, 0.7, 0.3, 0.0])
def test_tokens_are_sampled_with_their_probabilities(top_p: float) -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.25, 0.0, 0.3])
    kept = {1.0: [0, 1, 2, 4], 0.7: [1, 4], 0.3: [1], 0.0: [1]}[top_p]
    sampled = sampler(seed="1", top_p=top_p)
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[choose([sampled], probabilities.log()[None], 5)[0]] += 1
    expected = torch.zeros(5)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    assert torch.allclose(counts / 4000, expected, atol=0.025)  # three standard deviations


def test_temperature_penalties_and_biases_change_the_tokens() -> None:
    scores = torch.zeros(1, V)
    scores[0, 3], scores[0, 4] = 2.0, 1.5
    cold = sampler(temperature=0.01, seed="1")
    assert [choose([cold], scores)[0] for _ in range(5)] == [3] * 5
    penalized = sampler(temperature=0, frequency_penalty=0.4)
    assert [choose([penalized], scores)[0] for _ in range(4)] == [3, 3, 4, 3]  # 2.0, 1.6, (1.2 < 1.5), 1.2 > 1.1
    once = sampler(temperature=0, presence_penalty=0.6)
    assert [choose([once], scores)[0] for _ in range(3)] == [3, 4, 3]
    assert choose([sampler(temperature=0, logit_bias=((9, 5.0), (3, -100.0)))], scores) == [9]


def test_logprobs_are_those_of_the_model() -> None:
    scores = torch.randn(2, V)
    reporting = sampler(temperature=0.5, top_p=0.9, presence_penalty=1.0, seed="1", top_logprobs=2)
    (token, _) = choose([reporting, sampler()], scores)
    assert reporting.logprobs[0].logprob == pytest.approx(scores[0].log_softmax(-1)[token].item())
    assert [i for i, _ in reporting.logprobs[0].top] == scores[0].topk(2).indices.tolist()


def test_cancelled_requests_end_and_rows_beyond_the_vocabulary_are_never_sampled() -> None:
    scores = torch.zeros(2, V)
    scores[:, V - 1] = 9.0
    cancelled = sampler(temperature=0)
    cancelled.cancelled = True
    assert choose([cancelled, sampler(temperature=0, top_logprobs=0)], scores, V - 1)[0] == END
    assert choose([cancelled, sampler(temperature=0, top_logprobs=0)], scores, V - 1)[1] != V - 1


def allowed(scores: torch.Tensor, settings: dict[str, Any]) -> set[int]:
    """The tokens that are sampled in 300 draws from ``scores`` (V,)."""
    sampled = sampler(seed="5", temperature=2.0, **settings)
    return {choose([sampled], scores[None], len(scores))[0] for _ in range(300)}


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"min_p": 0.2}, {"top_k": 4, "min_p": 0.1}, {"top_k": 1}])
def test_top_k_and_min_p_leave_the_tokens_that_transformers_leaves(settings: dict[str, Any]) -> None:
    torch.manual_seed(2)
    scores = torch.randn(12)
    warpers = [TemperatureLogitsWarper(2.0)]
    warpers += [TopKLogitsWarper(settings["top_k"])] if "top_k" in settings else []
    warpers += [MinPLogitsWarper(settings["min_p"])] if "min_p" in settings else []
    left = scores[None]
    for warper in warpers:
        left = warper(torch.zeros(1, 1, dtype=torch.long), left)
    assert allowed(scores, settings) == {token for token, score in enumerate(left[0].tolist()) if score > -1e30}


def test_top_p_is_a_share_of_what_top_k_leaves() -> None:
    scores = torch.tensor([0.4, 0.3, 0.2, 0.1]).log() * 2  # at temperature 2, these probabilities
    assert allowed(scores, {"top_p": 0.69}) == {0, 1}
    assert allowed(scores, {"top_p": 0.5, "top_k": 2}) == {0}  # 0.4 of 0.7


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    torch.manual_seed(3)
    prompt, steps = [3, 4, 3], torch.randn(8, V)
    processor, ids = RepetitionPenaltyLogitsProcessor(1.7), list(prompt)
    ours = RequestSampler(Sampling(temperature=0, repetition_penalty=1.7), "__base__", END, prompt)
    for step in steps:
        token = int(processor(torch.tensor([ids]), step[None].clone()).argmax())
        assert choose([ours], step[None]) == [token]
        ids.append(token)
    assert len(set(ids[3:])) > 1
