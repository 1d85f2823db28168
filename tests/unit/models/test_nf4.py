"""Weights quantised in pieces, and laid out for ZeRO-3, are bit-equal to what bitsandbytes makes of whole ones."""

import bitsandbytes.functional
import pytest
import torch

from hydraft.models import nf4

SHAPES = [(128, 192), (130, 66), (7, 9), (1, 64), (512, 2050)]
"""With rows, and weights, that are no whole number of blocks, of bytes, or of scales."""


def weight(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    made = torch.randn(shape).to(dtype)
    made.view(-1)[:64] = 0  # a block of zeros
    return made


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pieces_are_bit_equal_to_the_whole(double: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "PIECE", 1 << 12)
    for shape in SHAPES:
        one = weight(shape, dtype)
        codes, state = bitsandbytes.functional.quantize_4bit(one, quant_type="nf4", compress_statistics=double)
        ours, own = nf4.quantise_whole(one, double, torch.uint8)
        assert torch.equal(ours, codes), shape
        expected, found = state.as_dict(packed=True), own.as_dict(packed=True)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items()), shape


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("double", [False, True])
def test_the_shares_of_a_payload_are_the_weight(ranks: int, double: bool) -> None:
    for shape in SHAPES:
        one = weight(shape, torch.bfloat16)
        codes, state = bitsandbytes.functional.quantize_4bit(one, quant_type="nf4", compress_statistics=double)
        payload = nf4.Payload(one.shape, double, ranks)
        shares = [payload.packed(codes, state, rank) for rank in range(ranks)]
        assert {share.numel() for share in shares} == {payload.share} and payload.share % (nf4.BLOCK // 2) == 0
        constants = sum(t.nbytes for t in (state.absmax, *([state.state2.absmax] if double else [])))
        assert 0 <= payload.bytes - codes.nbytes - constants < 3 * 16 + ranks * nf4.BLOCK // 2
        for dtype in (torch.uint8, torch.bfloat16, torch.float32):
            found, constants_of = payload.unpacked(torch.cat(shares).view(dtype), state)
            assert torch.equal(found, codes)
            expected, ours = state.as_dict(packed=True), constants_of.as_dict(packed=True)
            assert all(torch.equal(ours[name], value) for name, value in expected.items()), shape


def test_a_payload_at_an_odd_place_is_read_too() -> None:
    """A bucket of gathered weights may begin with an odd number of 16-bit ones."""
    one = weight((128, 192), torch.bfloat16)
    codes, state = bitsandbytes.functional.quantize_4bit(one, quant_type="nf4", compress_statistics=False)
    payload = nf4.Payload(one.shape, False, 1)
    bucket = torch.zeros(payload.bytes // 2 + 1, dtype=torch.bfloat16)
    bucket[1:] = payload.packed(codes, state, 0).view(torch.bfloat16)
    assert torch.equal(payload.unpacked(bucket[1:], state)[1].absmax, state.absmax)


def test_tables_are_those_of_bitsandbytes_and_shared() -> None:
    _, state = bitsandbytes.functional.quantize_4bit(torch.randn(64, 64), quant_type="nf4", compress_statistics=True)
    device = torch.device("cpu")
    assert torch.equal(nf4.table(device), state.code) and torch.equal(nf4.nested_table(device), state.state2.code)
    assert nf4.table(device) is nf4.table(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("double", [False, True])
def test_pieces_are_bit_equal_to_the_whole_on_a_gpu(double: bool) -> None:
    one = torch.randn(4096, 2816, dtype=torch.bfloat16)  # three pieces
    codes, state = bitsandbytes.functional.quantize_4bit(one.cuda(), quant_type="nf4", compress_statistics=double)
    ours, own = nf4.quantise_whole(one, double, torch.uint8, torch.device("cuda"))
    expected, found = state.as_dict(packed=True), own.as_dict(packed=True)
    assert torch.equal(ours, codes) and all(torch.equal(found[name], value) for name, value in expected.items())
