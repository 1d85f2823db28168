"""Storages are counted from the operation that makes them until they are freed, whoever holds them."""

from pathlib import Path

import bitsandbytes
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.storages import Storages

KIB = 1024


def bits(storages: Storages) -> tuple[int, int]:
    return storages.now["weights"], storages.now["batch"]


def test_bytes_are_those_of_storages_and_not_of_tensors() -> None:
    with Storages() as storages:
        whole = torch.empty(KIB, dtype=torch.float32)
        view, other = whole[10:20], torch.zeros(KIB, dtype=torch.uint8)
        assert bits(storages) == (5 * KIB, 0)
        del whole
        assert bits(storages) == (5 * KIB, 0), "the view holds it"
        del view, other
        assert bits(storages) == (0, 0)


def test_a_peak_within_a_phase_is_kept() -> None:
    with Storages() as storages:
        storages.phase("a")
        torch.empty(KIB, dtype=torch.uint8)
        kept = torch.empty(KIB, dtype=torch.float32)
        del kept
        storages.phase("b")
        left = torch.empty(8, dtype=torch.uint8)
    assert {name: peak.weights for name, peak in storages.peaks.items()} == {"a": 4 * KIB, "b": 8}
    assert storages.peaks["a"].largest == ((4 * KIB, "aten.empty.memory_format"),)
    assert left.numel() == storages.now["weights"]


def test_what_only_an_autograd_node_holds_is_counted() -> None:
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.kept = torch.zeros(KIB, dtype=torch.uint8)  # as bitsandbytes' MatMul4Bit keeps its weight
            ctx.save_for_backward(torch.zeros(2 * KIB, dtype=torch.uint8))
            return x * 2

        @staticmethod
        def backward(ctx, upstream):  # type: ignore[no-untyped-def]
            return upstream * 2

    with Storages() as storages:
        x = torch.ones(1, requires_grad=True)
        out = Keeps.apply(x)
        assert bits(storages) == (3 * KIB + 8, 0)
        out.backward()
        del out
        assert bits(storages) == (8, 0), "x and its gradient"


def test_activations_are_of_the_batch_and_weights_made_from_weights_are_not() -> None:
    with Storages() as storages:
        weight = torch.ones(64, 64, requires_grad=True)  # 16 KiB
        batch = torch.ones(4, 64)
        storages.of_batch(batch)
        copy = weight.detach().half()
        out = torch.nn.functional.linear(batch, weight).sum()
        buffer = torch.zeros(4, 64)
        assert bits(storages) == (16 * KIB + 8 * KIB + KIB, KIB + 4)
        buffer.copy_(batch)
        assert bits(storages) == (16 * KIB + 8 * KIB, 2 * KIB + 4), "written from the batch"
        out.backward()
        assert storages.now["batch"] == 2 * KIB + 4 + 16 * KIB, "the gradient is of the batch"
        del batch, out, buffer
        weight.grad = None
        assert bits(storages) == (16 * KIB + 8 * KIB, 0)
        assert copy.shape == weight.shape


def test_the_work_within_bitsandbytes_is_counted() -> None:
    weights = 64 * 1024
    with Storages() as storages:
        weight = torch.randn(256, 256, dtype=torch.bfloat16)
        storages.phase("quantising")
        packed, _ = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        del weight
        alive, work = storages.now["weights"], storages.now["work"]
    assert weights / 2 == packed.untyped_storage().nbytes()
    assert weights / 2 + weights / 64 < alive < weights / 2 + weights / 64 + 4 * KIB, "codes, absmax and tables"
    peak = storages.peaks["quantising"]
    assert peak.weights < 3 * weights + 4 * KIB, "the weight itself, and its codes"
    assert peak.everything > 10 * weights, "fp32 copies of the weight"
    assert work < KIB, "tables that are kept"


def test_a_mapped_file_is_counted_apart(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(16 * KIB)}, tmp_path / "x.safetensors")
    with Storages() as storages, safe_open(tmp_path / "x.safetensors", "pt") as file:
        read = file.get_slice("a")[...]
        half = read[:KIB]
        assert (storages.now["mapped"], storages.now["weights"]) == (64 * KIB, 0)
        copied = half.clone()
        assert (storages.now["mapped"], storages.now["weights"]) == (64 * KIB, 4 * KIB)
        assert copied.shape == half.shape
