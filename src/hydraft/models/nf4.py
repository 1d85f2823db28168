"""NF4 as bitsandbytes computes it (QLoRA, arXiv:2305.14314, section 3), in pieces; and its layout in one flat tensor.

A weight of N numbers has N / 2 bytes of codes, and a scale for each ``BLOCK`` numbers: fp32; or, with double quantisation, a byte for each
and an fp32 for each ``NESTED`` of them. Blocks do not depend on each other, so that a weight quantised in pieces is bit-equal to one
quantised whole; the nested quantisation needs the mean over all of its scales.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from bitsandbytes.functional import QuantState, get_4bit_type, quantize_4bit, quantize_blockwise

BLOCK, NESTED = 64, 256
"""Numbers per scale, and scales per scale with double quantisation."""

PIECE = 1 << 22
"""Numbers that are quantised at a time: on a CPU, bitsandbytes takes some 24 bytes for each."""


def quantise_blocks(flat: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (ceil(N / 2),) in bytes and scales (ceil(N / BLOCK),) in fp32 of numbers (N,), on ``device``."""
    count = flat.numel()
    codes = torch.empty(-(-count // 2), dtype=torch.uint8, device=device)
    scales = torch.empty(-(-count // BLOCK), dtype=torch.float32, device=device)
    for start in range(0, count, PIECE):
        piece = flat[start : start + PIECE].to(device)
        made, state = quantize_4bit(piece, blocksize=BLOCK, quant_type="nf4")
        codes[start // 2 : start // 2 + made.numel()] = made.view(-1)
        scales[start // BLOCK : start // BLOCK + state.absmax.numel()] = state.absmax
    return codes, scales


def quantisation(scales: torch.Tensor, shape: torch.Size, dtype: torch.dtype, double: bool) -> QuantState:
    """The constants of a weight from its ``scales`` (blocks,), quantised once more with ``double``, as in ``quantize_4bit``."""
    known = {"shape": shape, "dtype": dtype, "blocksize": BLOCK, "quant_type": "nf4", "code": table(scales.device)}
    if not double:
        return QuantState(absmax=scales, **known)
    offset = scales.mean()
    codes, nested = quantize_blockwise(scales - offset, blocksize=NESTED)
    nested.code = nested_table(scales.device)
    return QuantState(absmax=codes, offset=offset, state2=nested, **known)


def quantise_whole(
    weight: torch.Tensor, double: bool, storage: torch.dtype, device: torch.device | None = None
) -> tuple[torch.Tensor, QuantState]:
    """``bitsandbytes.functional.quantize_4bit`` of a weight (O, I), in pieces: bit-equal, with little memory.

    Codes whose bytes are no whole number of elements of ``storage`` stay in bytes.
    """
    codes, scales = quantise_blocks(weight.reshape(-1), device or weight.device)
    state = quantisation(scales, weight.shape, weight.dtype, double)
    return (codes if codes.numel() % storage.itemsize else codes.view(storage)).unsqueeze(1), state


@lru_cache
def table(device: torch.device) -> torch.Tensor:
    """The 16 numbers of NF4 by their code, one tensor for all layers."""
    made: torch.Tensor = get_4bit_type("nf4", device=device)
    return made


@lru_cache
def nested_table(device: torch.device) -> torch.Tensor:
    """The 256 numbers that scales are quantised to, one tensor for all layers."""
    made: torch.Tensor = quantize_blockwise(torch.zeros(1, device=device), blocksize=NESTED)[1].code.clone()
    return made


def _aligned(count: int, to: int = 16) -> int:
    return -(-count // to) * to


@dataclass(frozen=True)
class Payload:
    """Where the codes and the constants of a 4-bit weight are in one flat tensor, which ZeRO-3 shards and gathers like any other.

    In bytes: codes, scales, and with double quantisation the scales of the scales; each begins at a multiple of 16. The size is a
    multiple of a block's codes for each of the ranks, so that every share has whole blocks.
    """

    shape: torch.Size
    """(O, I)."""
    double: bool
    ranks: int
    block: int = BLOCK
    """Numbers per scale."""

    @property
    def codes(self) -> int:
        """Bytes of codes."""
        return -(-self.shape.numel() // 2)

    @property
    def blocks(self) -> int:
        """Scales."""
        return -(-self.shape.numel() // self.block)

    @property
    def scales(self) -> slice:
        """The bytes of the scales."""
        start = _aligned(self.codes)
        return slice(start, start + self.blocks * (1 if self.double else 4))

    @property
    def nested(self) -> slice:
        """The bytes of the scales of scales."""
        start = _aligned(self.scales.stop)
        return slice(start, start + 4 * -(-self.blocks // NESTED) * self.double)

    @property
    def bytes(self) -> int:
        """Bytes of all, with padding."""
        return _aligned(self.nested.stop, self.block // 2 * self.ranks)

    @property
    def share(self) -> int:
        """Bytes of a rank's share."""
        return self.bytes // self.ranks

    def packed(self, codes: torch.Tensor, state: QuantState, rank: int, first: int = 0) -> torch.Tensor:
        """A rank's share, in bytes, on the device of ``codes``.

        Args:
            codes: in bytes, at least those of the share.
            state: of the whole weight.
            rank: whose share.
            first: where ``codes`` begin among those of the weight.
        """
        share = torch.zeros(self.share, dtype=torch.uint8, device=codes.device)
        parts = [(first, codes.view(-1).view(torch.uint8)), (self.scales.start, state.absmax.view(torch.uint8))]
        if self.double:
            parts.append((self.nested.start, state.state2.absmax.view(torch.uint8)))
        begin = rank * self.share
        for start, part in parts:
            low, high = max(begin, start), min(begin + self.share, start + part.numel())
            if low < high:
                share[low - begin : high - begin] = part[low - start : high - start]
        return share

    def unpacked(self, payload: torch.Tensor, state: QuantState) -> tuple[torch.Tensor, QuantState]:
        """Codes (N / 2, 1) in bytes, and the constants, as views of a gathered payload; ``state`` has what is not in it."""
        flat = payload.detach().view(-1).view(torch.uint8)
        scales, nested = flat[self.scales], flat[self.nested]
        second = state.state2
        if self.double:
            second = QuantState(absmax=_floats(nested), code=second.code, blocksize=NESTED, dtype=second.dtype)
        else:
            scales = _floats(scales)
        known = {"shape": state.shape, "dtype": state.dtype, "blocksize": self.block, "quant_type": "nf4"}
        return flat[: self.codes].unsqueeze(1), QuantState(
            absmax=scales, code=state.code, offset=state.offset, state2=second, **known
        )


def _floats(data: torch.Tensor) -> torch.Tensor:
    """Bytes as fp32; copied if a bucket of gathered weights holds them at an odd place."""
    return (data if data.storage_offset() % 4 == 0 else data.clone()).view(torch.float32)
