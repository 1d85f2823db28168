"""The packages that ``kernels=`` needs, and Triton's interpreter."""

import os

from hydraft.config.choices import Kernels
from hydraft.config.schema import Config

PACKAGES = {Kernels.liger: "liger_kernel", Kernels.unsloth: "unsloth"}

INTERPRETED = "TRITON_INTERPRET"
"""Set to 1, Triton runs its kernels as Python on a CPU: the same results, a thousand times slower."""


def interpreted(config: Config) -> bool:
    """Whether a run uses only Triton's kernels, and Triton interprets them instead of compiling them for a GPU."""
    return config.kernels.kind is Kernels.liger and os.environ.get(INTERPRETED) == "1"
