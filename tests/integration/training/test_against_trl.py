"""The losses of preference objectives and their gradients against TRL's trainers, on the same batch and model."""

from pathlib import Path

import torch

from bench import against_trl

BOUND = 1e-12
IN_FP32 = {"orpo": 1e-6}
"""TRL computes the odds ratio in fp32, whatever the model is in."""


def test_each_loss_and_its_gradients_are_those_of_trl() -> None:
    found = list(against_trl.losses(torch.float64))
    assert {name.split(",")[0] for name, *_ in found} == {"dpo", "ipo", "kto", "orpo", "simpo"}
    for name, ours, theirs in found:
        assert max(against_trl.apart(ours, theirs)) < IN_FP32.get(name.split(",")[0], BOUND), name


def test_in_fp32_losses_are_those_of_trl() -> None:
    """Gradients are as far apart as fp32 leaves them: TRL's own are up to 5e-6 from those that it computes in fp64."""
    for name, ours, theirs in against_trl.losses(torch.float32):
        loss, gradients = against_trl.apart(ours, theirs)
        assert loss < 1e-6, name
        assert gradients < 1e-5, name


def test_ten_steps_of_dpo_are_those_of_trl(tmp_path: Path) -> None:
    """From the same weights, in fp32: losses, rewards, and every element of the adapter."""
    assert max(against_trl.ten_steps(tmp_path)) < 1e-5
