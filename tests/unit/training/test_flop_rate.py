"""Operations a second and MFU, from a speed."""

import pytest

from hydraft.plan.peak_rate import PEAKS, peak_rate
from hydraft.training.flop_rate import FlopRate


@pytest.mark.parametrize(
    ("card", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA H200 NVL", 835), ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10", 125), ("NVIDIA A10G", None), ("NVIDIA L40S", 362), ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA GeForce RTX 3090 Ti", 80), ("Tesla V100-SXM2-16GB", 125), ("Tesla T4", 65),
        ("NVIDIA RTX 6000 Ada Generation", 364.2), ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None), ("Apple M4", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_card_is_found_by_its_name(card: str, tflops: float | None) -> None:
    found = peak_rate(card)
    assert found == (None if tflops is None else tflops * 1e12)


def test_no_name_hides_a_longer_one() -> None:
    assert {part: peak_rate(f"NVIDIA {part}") for part in PEAKS} == {part: peak * 1e12 for part, peak in PEAKS.items()}


def test_mfu_is_the_share_of_the_peak() -> None:
    rate = FlopRate(per_token=3e9, ranks=4, card="NVIDIA A100-SXM4-80GB")
    assert rate.values(speed=208_000) == {"tflops_per_gpu": 156.0, "mfu": 0.5}
    assert FlopRate(3e9, 4, "NVIDIA A100-SXM4-80GB", half=False).values(208_000) == {"tflops_per_gpu": 156.0}
    assert FlopRate(3e9, 4, None).values(208_000) == {} and FlopRate(3e9, 4, None).result(1) == {"flops_per_token": 3e9}
