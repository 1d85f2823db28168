"""The weights of the best evaluation: which are removed, and how they become the run's adapter."""

import json
from pathlib import Path

import pytest

from hydraft.checkpoint import best_weights, manifest


def evaluation(run: Path, step: int) -> Path:
    """The weights of an evaluation, as a run keeps them."""
    folder = best_weights.folder_of(run, step)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"%d" % step)
    (folder / "scores.jsonl").write_text(f"{step}\n")
    manifest.seal(folder)
    return folder


def checkpoint(run: Path, step: int, best: int | None) -> Path:
    folder = run / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "best_step": best}))
    return folder


def steps(run: Path) -> list[int]:
    return [manifest.step_of(folder) for folder in best_weights.saved(run)]


def test_what_the_run_or_a_checkpoint_needs_is_kept(tmp_path: Path) -> None:
    best_weights.prune(tmp_path, 2)  # a run that keeps none
    assert not (tmp_path / "best").exists()
    for step in (2, 4, 6, 8):
        evaluation(tmp_path, step)
    checkpoint(tmp_path, 3, 2)
    checkpoint(tmp_path, 7, 6)
    (broken := checkpoint(tmp_path, 5, None) / "state.json").write_text("{")
    cut_off = tmp_path / "best/.step-000002.staging-0123abcd"
    cut_off.mkdir()
    best_weights.prune(tmp_path, 8)
    assert steps(tmp_path) == [2, 6, 8] and broken.exists() and not cut_off.exists()
    (mine := best_weights.folder_of(tmp_path, 8) / "notes.txt").write_text("mine")
    best_weights.drop_after(tmp_path, 5)  # a run that resumes from the checkpoint of step 5
    assert steps(tmp_path) == [2, 8] and mine.exists()


def test_the_weights_become_the_adapter_and_a_persons_files_stay(tmp_path: Path) -> None:
    folder = evaluation(tmp_path, 4)
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    best_weights.install(tmp_path, 4, target)
    assert (target / "adapter_model.safetensors").read_bytes() == b"4" and manifest.fault(target) is None
    assert (target / "notes.txt").read_text() == "mine" and not (target / "scores.jsonl").exists()
    assert (tmp_path / "scores.jsonl").read_text() == "4\n"
    assert manifest.fault(folder) is None
    (folder / "adapter_model.safetensors").write_bytes(b"5")
    with pytest.raises(RuntimeError, match="was changed after it was written"):
        best_weights.install(tmp_path, 4, target)
    assert (target / "adapter_model.safetensors").read_bytes() == b"4"
    with pytest.raises(RuntimeError, match="not there"):
        best_weights.install(tmp_path, 6, target)
