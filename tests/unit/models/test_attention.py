"""Attention over documents: the arguments of flash attention, and that both implementations give the same results.

Shapes: N tokens of a row, H query heads, K key and value heads, D features per head.
"""

import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GlmConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from hydraft.data.batch import PaddingFree
from hydraft.models import attention
from hydraft.models.attention_features import Features, attend

LENGTHS = (5, 1, 17, 8)
HEADS, KEYS, SIZE = 4, 2, 8
SHAPE = {
    "vocab_size": 32, "hidden_size": HEADS * SIZE, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "head_dim": SIZE, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def model_of(family: Callable[..., PreTrainedConfig]) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family(**SHAPE), dtype=torch.float32)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    return model


def batch() -> dict[str, Any]:
    """The output of the real collator for documents of these lengths."""
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(3, 32, (length,), generator=generator).tolist() for length in LENGTHS]
    return PaddingFree()([[{"input_ids": ids, "labels": ids}] for ids in documents])


class Recorder:
    """Replaces ``varlen_attn``: records its arguments, and computes the result with one masked product over the row."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *args: Any, **named: Any) -> torch.Tensor:
        call = inspect.signature(varlen_attn).bind(*args, **named)  # as the real function requires
        call.apply_defaults()
        self.calls.append(dict(call.arguments))
        q, k, v = (call.arguments[name].transpose(0, 1) for name in ("query", "key", "value"))  # (H, N, D), (K, N, D)
        if call.arguments["enable_gqa"]:
            k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0) for x in (k, v))
        ends = call.arguments["cu_seq_q"]
        document = torch.bucketize(torch.arange(q.shape[1]), ends[1:], right=True)  # (N,)
        before, after = call.arguments[
            "window_size"
        ]  # as varlen_attn documents them: tokens on the left and on the right, or -1
        seen = (document[:, None] == document[None]).triu(-before if before >= 0 else -q.shape[1]).tril(after)  # (N, N)
        scores = (q @ k.mT * call.arguments["scale"]).masked_fill(~seen, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1)  # (N, H, D)


WINDOW = 6
"""Shorter than one document of ``LENGTHS``, and as long as or longer than others."""


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        (LlamaConfig, [(-1, 0)] * 2),
        (GlmConfig, [(-1, 0)] * 2),
        (partial(MistralConfig, sliding_window=WINDOW), [(WINDOW - 1, 0)] * 2),
        (partial(MistralConfig, sliding_window=max(LENGTHS)), [(-1, 0)] * 2),  # no document is longer
        (
            partial(
                Qwen3Config,
                sliding_window=WINDOW,
                use_sliding_window=True,
                layer_types=["full_attention", "sliding_attention"],
            ),
            [(-1, 0), (WINDOW - 1, 0)],
        ),
        (
            partial(PhimoeConfig, sliding_window=WINDOW, num_local_experts=2),
            [(WINDOW - 1, 0)] * 2,
        ),  # nowhere but in the mask
    ],
)
def test_flash_attention_is_called_once_per_row_with_its_boundaries(
    family: Callable[..., PreTrainedConfig], windows: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients are equal to 1e-6 to those of one sdpa call per document."""
    model, given, found = model_of(family), batch(), []
    recorder = Recorder()
    for flash in (False, True):
        if flash:
            monkeypatch.setattr(attention, "varlen_attn", recorder)
            monkeypatch.setattr(attention, "flash_supports", lambda *_: True)
        model.zero_grad()
        loss = model(**given).loss
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (split, gradient), (flashed, flash_gradient) = found
    assert float(flashed) == pytest.approx(float(split), rel=1e-6)
    assert (flash_gradient - gradient).norm() <= 1e-6 * gradient.norm()
    assert [call["window_size"] for call in recorder.calls] == windows
    tokens = sum(LENGTHS)
    for call in recorder.calls:
        assert call["query"].shape == (tokens, HEADS, SIZE)
        assert call["key"].shape == call["value"].shape == (tokens, KEYS, SIZE)
        for name in ("cu_seq_q", "cu_seq_k"):
            assert call[name].dtype is torch.int32 and call[name].is_contiguous()
            assert call[name].tolist() == [0, 5, 6, 23, 31]
        assert call["max_q"] == call["max_k"] == max(LENGTHS) and type(call["max_q"]) is int
        assert call["scale"] == pytest.approx(SIZE**-0.5)
        assert call["enable_gqa"] is True
        assert all(call[name].stride(-1) == 1 for name in ("query", "key", "value"))


@pytest.mark.parametrize("family", [Gemma2Config, partial(GptOssConfig, num_local_experts=4)])
def test_flash_attention_is_not_called_for_what_it_does_not_have(
    family: Callable[..., PreTrainedConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``varlen_attn`` has neither softcap nor sinks."""
    recorder, model = Recorder(), model_of(family)
    monkeypatch.setattr(attention, "varlen_attn", recorder)
    monkeypatch.setattr(attention, "flash_supports", lambda *_: True)
    assert torch.isfinite(model(**batch()).loss)
    assert not recorder.calls


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 5, 9])
def test_sinks_and_softcap_by_their_formulas(queries: int, masked: bool) -> None:
    """Softmax over the scores and the sinks, the sinks' share dropped (arXiv:2508.10925), and tanh of the scores (arXiv:2408.00118),
    in fp64 with gradients; queries are the last of 9 tokens."""
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, length, SIZE, dtype=torch.float64, requires_grad=True)
        for heads, length in ((HEADS, queries), (KEYS, 9), (KEYS, 9))
    )
    sinks = torch.randn(HEADS, dtype=torch.float64, requires_grad=True)
    seen = torch.ones(queries, 9, dtype=torch.bool).tril(9 - queries)
    mask = (
        (seen & (torch.rand(2, 1, queries, 9) < 0.7)).logical_or(torch.eye(9, dtype=torch.bool)[-queries:])
        if masked
        else None
    )
    for softcap, given in ((None, sinks), (3.0, None), (3.0, sinks)):
        found = attend(query, key, value, mask, Features(0.3, softcap=softcap, sinks=given))
        scores = 0.3 * query @ key.repeat_interleave(HEADS // KEYS, 1).mT
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        weights = scores.exp() * (seen if mask is None else mask)
        total = weights.sum(-1, keepdim=True) + (0 if given is None else sinks.exp().view(1, HEADS, 1, 1))
        expected = weights / total @ value.repeat_interleave(HEADS // KEYS, 1)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # the softmax under a softcap is in fp32
        inputs = (query, key, value) if given is None else (query, key, value, sinks)
        pairs = zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected)), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_torch_2_11_accepts_fewer_key_heads_without_an_argument() -> None:
    def of_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):  # type: ignore[no-untyped-def]
        raise AssertionError

    assert attention.grouping(of_2_11) == {}
    assert attention.grouping(varlen_attn) == attention.GROUPED
    assert attention.grouping(lambda query, *, enable_gqa=False: query) == {"enable_gqa": True}


LLAMA = {"is_cuda": True, "dtype": torch.bfloat16, "shape": (1, 32, 99, 128)}


@pytest.mark.parametrize(
    ("change", "capability", "expected"),
    [
        ({}, (8, 0), True),
        ({"dtype": torch.float16}, (9, 0), True),
        ({}, (7, 5), False),
        ({"dtype": torch.float32}, (8, 0), False),
        ({"is_cuda": False}, (8, 0), False),
        ({"shape": (1, 32, 99, 256)}, (8, 0), True),
        ({"shape": (1, 32, 99, 256)}, (8, 9), False),
        ({"shape": (1, 32, 99, 264)}, (8, 0), False),
        ({"shape": (1, 32, 99, 100)}, (8, 0), False),
    ],
)
def test_the_tensors_that_flash_attention_supports(
    change: dict[str, Any], capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    tensor: Any = SimpleNamespace(**{**LLAMA, **change})
    assert attention.flash_supports(tensor, tensor, tensor) is expected
    other: Any = SimpleNamespace(**{**LLAMA, "dtype": torch.float32})
    assert not attention.flash_supports(tensor, other, tensor)


def test_boundaries_are_copied_from_the_device_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    diff = torch.Tensor.diff
    monkeypatch.setattr(torch.Tensor, "diff", lambda self: calls.append(1) or diff(self))
    model = model_of(LlamaConfig)
    before = len(attention._lengths)
    for _ in range(2):
        given = batch()
        model(**given)
    assert len(calls) == 2  # although there are two layers
    del given
    assert len(attention._lengths) <= before + 1  # released with the batch


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("size", [64, 128])
def test_on_a_gpu_both_implementations_agree_and_no_document_attends_to_another(size: int, window: int | None) -> None:
    """In bf16: to 2e-2 of the largest element, forward and backward (its epsilon is 8e-3)."""
    torch.manual_seed(0)
    ends = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32).cuda()
    tokens, longest = sum(LENGTHS), max(LENGTHS)
    shapes = ((1, HEADS, tokens, size), (1, KEYS, tokens, size), (1, KEYS, tokens, size))
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for shape in shapes)
    assert attention.flash_supports(q, k, v)
    module, weight = torch.nn.Module(), torch.randn(1, tokens, HEADS, size, device="cuda", dtype=torch.bfloat16)

    def run(max_length: int | None) -> list[torch.Tensor]:
        out, _ = attention.documents_attention(
            module,
            q,
            k,
            v,
            None,
            scaling=size**-0.5,
            sliding_window=window,
            cu_seq_lens_q=ends,
            max_length_q=max_length,
        )
        return [out.detach(), *torch.autograd.grad((out * weight).sum(), (q, k, v))]

    for flash, split in zip(run(longest), run(None), strict=True):
        assert (flash - split).abs().max() <= 2e-2 * split.abs().max()
    before = run(longest)[0]
    with torch.no_grad():
        for tensor in (k, v):
            tensor[:, :, 6:23].neg_()
    after = run(longest)[0]
    for document, (start, end) in enumerate(pairwise(ends.tolist())):
        assert torch.equal(before[:, start:end], after[:, start:end]) == (document != 2)
