"""The most floating-point operations a second of common GPUs in 16 bits. No torch.

Dense products with fp32 sums, in TFLOP/s, from NVIDIA's data sheets and architecture white papers, whose headline figures are often
those with sparsity, twice as many.
"""

import re

PEAKS = {
    "H200 NVL": 835, "H200": 989, "GH200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H800 PCIe": 756, "H800": 989, "H20": 148,
    "B200": 2250, "A100": 312, "A800": 312, "A30": 165, "A40": 149.7, "A10": 125, "L40S": 362, "L40": 181, "L20": 119.5, "L4": 121,
    "RTX A6000": 154.8, "RTX 6000 Ada": 364.2, "RTX 3090 Ti": 80, "RTX 3090": 71, "RTX 4090": 165.2, "RTX 5090": 209.5, "V100": 125, "T4": 65,
}  # fmt: skip
"""By a part of the card's name; one that is a part of another stands behind it."""


def peak_rate(name: str) -> float | None:
    """Operations a second of the card with this name; None if it is not known, or a slice of a card."""
    if "MIG" in name:
        return None
    found = (peak for part, peak in PEAKS.items() if re.search(rf"(?<!\w){re.escape(part)}(?![A-Za-z0-9])", name))
    peak = next(found, None)
    return None if peak is None else peak * 1e12
