"""The description of the CPU, for DeepSpeed's optimizers in main memory."""

from typing import Any

import cpuinfo
import pytest

from hydraft.training import deepspeed_ops


def test_the_cpu_is_described_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def describe() -> dict[str, Any]:
        calls.append(1)
        return {"arch": "X86_64"}

    monkeypatch.setattr(cpuinfo, "get_cpu_info", describe)
    for _ in range(2):
        deepspeed_ops.cache_cpu_info()
        from cpuinfo import get_cpu_info  # as DeepSpeed does, at each use

        assert get_cpu_info() == {"arch": "X86_64"}
    assert calls == [1]
