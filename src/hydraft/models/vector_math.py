"""The vector functions that torch takes from MKL on a CPU: cos, exp, sqrt, and others."""

import torch

FUNCTIONS = (
    torch.acos, torch.asin, torch.atan, torch.cos, torch.erf, torch.erfc, torch.erfinv, torch.exp, torch.log, torch.log10,
    torch.log2, torch.sin, torch.sqrt, torch.tan, torch.tanh, torch.trunc,
)  # fmt: skip
"""Those of ``ATen/cpu/vml.h``."""


def resolve() -> None:
    """Call each vector function once on one thread, before several threads share out a tensor.

    MKL looks for its kernel of this CPU at the first call in a process. Where two threads make it at once, one may get a kernel of
    low accuracy, for that call alone: then ``cos`` of the rotary embedding is off by 1e-4, and the first loss of a run by 1e-5. It
    happens about once in 300 processes (https://github.com/pytorch/pytorch/issues/188792; fixed in MKL 2025).
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")
        for function in FUNCTIONS:
            function(one)
