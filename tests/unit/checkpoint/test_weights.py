"""A saved adapter is verified: tensors that are missing, have another shape, are not finite or are zero are named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hydraft.checkpoint.weights import _plain_lora, verify_adapter

GOOD = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(4, 2)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in GOOD.items()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"q.lora_A.weight": GOOD["q.lora_A.weight"]}, "1 tensors were saved, 2 were trained"),
        ({**GOOD, "q.lora_B.weight": torch.ones(4, 3)}, r"q\.lora_B\.weight has shape \(4, 3\)"),
        ({**GOOD, "q.lora_B.weight": torch.full((4, 2), float("nan"))}, "is not finite"),
        ({**GOOD, "q.lora_B.weight": torch.zeros(4, 2)}, "every B is zero"),
    ],
)
def test_an_adapter_that_differs_from_the_trained_one_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(RuntimeError, match=message):
        verify_adapter(tmp_path / "adapter.safetensors", SHAPES, updated=True)


def test_a_complete_adapter_is_accepted_and_so_is_one_without_updates(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "adapter.safetensors")
    verify_adapter(tmp_path / "adapter.safetensors", SHAPES, updated=True)
    save_file({**GOOD, "q.lora_B.weight": torch.zeros(4, 2)}, tmp_path / "adapter.safetensors")
    verify_adapter(tmp_path / "adapter.safetensors", SHAPES, updated=False)


def test_a_pissa_adapter_becomes_lora_of_twice_the_rank() -> None:
    """B A - B0 A0 as one product."""
    torch.manual_seed(0)
    trained = {"q.lora_A.weight": torch.randn(2, 4), "q.lora_B.weight": torch.randn(5, 2)}
    initial = {"q.lora_A.weight": torch.randn(2, 4), "q.lora_B.weight": torch.randn(5, 2)}
    plain = _plain_lora(trained, initial)
    update = plain["q.lora_B.weight"] @ plain["q.lora_A.weight"]
    expected = trained["q.lora_B.weight"] @ trained["q.lora_A.weight"]
    expected -= initial["q.lora_B.weight"] @ initial["q.lora_A.weight"]
    assert torch.allclose(update, expected, atol=1e-6)
