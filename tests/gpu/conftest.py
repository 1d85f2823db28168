"""What the tests on a card share. Each is small (the embedded model, commands of their own process) and needs one card.

    make test-gpu                                                    # with the others that are marked gpu
    pytest -o addopts= -m gpu tests/gpu                              # where pytest-timeout is not installed
    HYDRAFT_GPU_TESTS_ON_CPU=1 pytest tests/gpu                      # without a card

With ``HYDRAFT_GPU_TESTS_ON_CPU`` they run on the CPU, less what only a card has (``card_only``: fp16, waiting for a device). It
shows that nothing in them is mistyped, and nothing of cards.
"""

import sys

import pytest

from conftest import ROOT
from gpu.on_card import ON_CPU

sys.path.append(str(ROOT / "tests/support"))  # its helpers: adapters without a training run


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take back that these are skipped without a card, where they are to run without one."""
    for item in items:
        if ON_CPU and "tests/gpu/" in item.path.as_posix():
            item.own_markers = [mark for mark in item.own_markers if mark.kwargs.get("reason") != "no CUDA device here"]
