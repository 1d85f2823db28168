"""4-bit layers that ZeRO-3 can free: bit-equal to bitsandbytes, and no weight remains in memory after its use."""

import copy
from typing import Any

import bitsandbytes
import pytest
import torch

from conftest import config_of, run_ranks
from hydraft.models.linear_4bit import ShardedLinear4bit, hold
from hydraft.models.nf4 import Payload
from hydraft.models.shapes import planned_config
from hydraft.plan.gathered import Limits, simulated
from hydraft.plan.parameters import layout, trained

CASES = [
    "model=llama3 quant=nf4",
    "model=llama3 quant=nf4 train.gradient_checkpointing=true train.precision=bf16",
    "model=qwen model.size=2.5-0.5b quant=nf4 quant.double_quant=false lora.bias=all",
    "model=chatglm2 quant=nf4 kernels.loss=chunked",
    "model=llama3 quant=nf4 zero.offload_param=cpu",
    "model=llama3 quant=nf4 reuse=200000",
]
PLAIN = ["model=llama3 quant=none", "model=chatglm2 quant=none kernels.loss=chunked train.gradient_checkpointing=true"]


@pytest.fixture(scope="module")
def results_by_case() -> dict[str, dict[str, dict[str, Any]]]:
    """The results of rank 0 of two for each case (sharded_rank.py)."""
    cases = [*CASES, *PLAIN]
    return dict(zip(cases, run_ranks("tests/support/sharded_rank.py", cases, 2), strict=True))


def planned(case: str) -> int:
    """Planned bytes of gathered weights at the start of the backward pass, with the reuse distance of the case."""
    config = config_of("model.init=random", "model.scale=tiny", "zero=stage3", *case.split()[:-1])
    native = planned_config(config.model)
    assert native is not None
    known = layout(native)
    assert known is not None
    limits = Limits(0, 0, 10**9, int(case.rpartition("=")[2]))
    return 4 * simulated(config, known, trained(known, config.lora), limits).head


def test_no_weight_remains_after_its_forward_pass(results_by_case: dict[str, dict[str, dict[str, Any]]]) -> None:
    for case in CASES:
        measured = results_by_case[case]
        own, theirs = measured["sharded"], measured["bitsandbytes"]
        assert own["losses"] == theirs["losses"] and own["weights"] == theirs["weights"], case  # bit-equal
        assert own["graph"] == [0, 0] and all(theirs["graph"]), case  # shows that the graph is searched correctly
        quantised = theirs["graph"][1]
        assert theirs["alive"][1] >= quantised > 0, case
        if "reuse" in case:
            assert 0 < own["alive"][1] <= planned(case), case
        else:
            assert own["alive"] == [0, 0], case


def test_no_unquantised_weight_remains_either(results_by_case: dict[str, dict[str, dict[str, Any]]]) -> None:
    for case in PLAIN:
        assert results_by_case[case]["sharded"]["alive"] == [0, 0], case


def layer(bias: bool, double: bool, dtype: torch.dtype, device: str = "cpu") -> bitsandbytes.nn.Linear4bit:
    torch.manual_seed(0)
    made = bitsandbytes.nn.Linear4bit(
        128, 192, bias=bias, compute_dtype=dtype, compress_statistics=double, quant_type="nf4", quant_storage=dtype
    ).to(device)
    made.support_avx512bf16_for_cpu = False
    return made


def pack(layer: bitsandbytes.nn.Linear4bit) -> None:
    """Move the constants of a whole layer to its parameter, as loading does with a share."""
    state, dtype = layer.weight.quant_state, layer.quant_storage
    payload = Payload(state.shape, state.nested, 1, state.blocksize)
    data = payload.packed(layer.weight.data, state, 0).view(dtype).unsqueeze(1)
    hold(layer, payload, state, dtype)
    layer.weight = bitsandbytes.nn.Params4bit(data, quant_type="nf4", bnb_quantized=True)


def compare(plain: bitsandbytes.nn.Linear4bit, x: torch.Tensor) -> None:
    """Output and gradients of both kinds of layer; the weight may be freed between forward and backward."""
    if plain.bias is not None:
        plain.bias.requires_grad_()
    ours = copy.deepcopy(plain)
    pack(ours)
    assert type(ours) is ShardedLinear4bit
    results = []
    for module in (plain, ours):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        data = module.weight.data
        if module is ours:
            module.weight.data = torch.empty(0, dtype=data.dtype, device=data.device)  # as DeepSpeed frees it
            module.weight.data = data.clone()
        upstream = torch.arange(out.numel(), device=out.device).reshape(out.shape).sin().to(out.dtype)  # finite in fp16
        out.backward(upstream)
        results.append((out, leaf.grad, None if module.bias is None else module.bias.grad))
    for sharded, theirs in zip(*results, strict=True):
        assert (sharded is None and theirs is None) or (sharded.dtype == theirs.dtype and torch.equal(sharded, theirs))
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_bit_equal_to_bitsandbytes(bias: bool, double: bool, dtype: torch.dtype) -> None:
    for shape in ((3, 128), (1, 7, 128), (2, 5, 128)):
        for given in (dtype, torch.float32):  # inputs of another type are cast, and their gradients are cast back
            compare(layer(bias, double, dtype), torch.randn(shape, dtype=given))


def test_a_layer_whose_input_needs_no_gradient_saves_nothing() -> None:
    plain = layer(False, True, torch.float32)
    pack(plain)
    assert plain(torch.randn(2, 128)).grad_fn is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_are_bit_equal_on_a_gpu(dtype: torch.dtype) -> None:
    for rows in (1, 64, 4096):  # bitsandbytes has different kernels for few rows and for many
        compare(layer(False, True, dtype, "cuda"), torch.randn(1, rows, 128, dtype=dtype, device="cuda"))
