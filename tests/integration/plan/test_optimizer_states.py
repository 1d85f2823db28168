"""Optimizer state by ZeRO stage, compared with real DeepSpeed engines on one and two ranks."""

import pytest

from conftest import config_of, run_ranks
from hydraft.models.shapes import planned_config
from hydraft.plan.optimizer_states import pinned, states
from hydraft.plan.parameters import layout, trained
from hydraft.plan.weights import WIDTH

CASES = [
    f"zero={stage} train.precision={precision} train.micro_batch_size=1 train.gradient_accumulation_steps=2"
    for stage in ("stage0", "stage1", "stage2", "stage3", "stage2_offload", "stage3_offload")
    for precision in ("fp32", "bf16")
] + [
    f"optimizer={optimizer} zero={stage} train.precision={precision} train.micro_batch_size=1"
    for optimizer, stage, precision in (
        ("adamw_8bit", "stage0", "fp32"), ("adamw_8bit", "stage2", "bf16"), ("adamw_8bit", "stage3 lora=none quant=none", "bf16"),
        ("lion", "stage0", "bf16"), ("lion", "stage2_offload", "fp32"), ("lion", "stage3", "fp32"),
        ("adafactor", "stage0 lora=dora", "fp32"), ("adafactor", "stage0 lora=none quant=none", "bf16"),
        ("muon", "stage0 lora=dora", "bf16"), ("muon", "stage2 lora=none quant=none", "fp32"),
        ("muon optimizer.lora_plus=4", "stage3 lora.target_modules=[v_proj,lm_head] quant=none", "bf16"),
    )
]  # fmt: skip


def engines(ranks: int) -> list[dict[str, int]]:
    """The measurements of rank 0 of ``ranks`` for each case."""
    found: list[dict[str, int]] = run_ranks("tests/support/engine_rank.py", CASES, ranks)
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_optimizer_state_equals_that_of_the_engine(ranks: int) -> None:
    for case, real in zip(CASES, engines(ranks), strict=True):
        config = config_of("model=llama3", "model.init=random", "model.scale=tiny", *case.split(), f"cluster=1x{ranks}")
        native = planned_config(config.model)
        assert native is not None
        known = layout(native)
        assert known is not None
        made = states(config, trained(known, config.lora), WIDTH[config.train.precision], on_gpu=False)
        assert made.device.optimizer + made.host.optimizer == real["optimizer"], case
        if config.zero.stage == 3:
            flat = made.device.gradients or made.host.gradients - 4 * real["trained"] // ranks
            assert flat == real["gradients"], case


def test_pinned_memory_is_allocated_in_powers_of_two() -> None:
    config = config_of("zero=stage3_offload")
    assert [pinned(size, config, on_gpu=True) for size in (0, 1, 3, 4096, 4097)] == [0, 1, 4, 4096, 8192]
    assert pinned(4097, config, on_gpu=False) == 4097
    config.zero.pin_memory = False
    assert pinned(4097, config, on_gpu=True) == 4097
