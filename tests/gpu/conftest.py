"""Configuration of the GPU tests. Each is small (the embedded model, separate commands) and needs one GPU.

    make test-gpu                                                    # with the other tests that are marked gpu
    pytest -o addopts= -m gpu tests/gpu                              # if pytest-timeout is not installed
    HYDRAFT_GPU_TESTS_ON_CPU=1 pytest tests/gpu                      # without a GPU

With ``HYDRAFT_GPU_TESTS_ON_CPU`` they run on the CPU, except for what needs a GPU (``gpu_only``: fp16, waiting for a
device). This finds mistakes in the tests, but tests nothing of GPUs.
"""

import sys

import pytest

from conftest import ROOT
from gpu.on_card import ON_CPU

sys.path.append(str(ROOT / "tests/support"))  # helpers: adapters without a training run


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Do not skip these tests without a GPU if they are to run on the CPU."""
    for item in items:
        if ON_CPU and "tests/gpu/" in item.path.as_posix():
            item.own_markers = [mark for mark in item.own_markers if mark.kwargs.get("reason") != "no CUDA device here"]
