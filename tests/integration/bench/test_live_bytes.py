"""A rank under ZeRO-3 never has more 4-bit weights than its share and a layer, of all storages in its process."""

from pathlib import Path
from typing import Any

import pytest

from bench import live_bytes
from bench.stacks import Sizes, write_model
from conftest import on_ranks

RANKS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 8 layers."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, tied=False, layers=8, hidden=128)
    return folder


def counted(stack: str, folder: Path) -> list[dict[str, Any]]:
    """What each rank has counted."""
    arguments = ["--rank", stack, "--model", str(folder), "--ranks", str(RANKS)]
    found: list[dict[str, Any]] = on_ranks("bench/live_bytes.py", arguments, RANKS)
    return found


def test_no_rank_has_more_than_its_share_and_a_layer(folder: Path) -> None:
    ours, plain = counted("ours", folder), counted("plain", folder)
    sizes = Sizes.of(folder)
    bounds = {phase: sizes.bound(phase, RANKS) + live_bytes.SLACK * sizes.model for phase in live_bytes.PHASES}
    held = {phase: live_bytes.most(ours, phase) for phase in bounds}
    assert {phase: size for phase, size in held.items() if size > bounds[phase]} == {}, (held, bounds)
    assert live_bytes.most(plain, "forward") > sizes.model > bounds["forward"], "the count sees what the libraries keep"
    assert live_bytes.apart(ours, plain) <= live_bytes.TOLERANCE
