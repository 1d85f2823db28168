"""The fused AdamW kernel steps as torch's default does, and a checkpoint of either is one of the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from hydraft.system import hardware
from hydraft.training import deepspeed_ops

STAGES = (0, 1, 2, 3)


@pytest.mark.parametrize("shapes", [[(8, 64), (64, 8), (3,)], [(1027,)]], ids=["tensors", "flat"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_ten_steps_are_those_of_the_default(shapes: list[tuple[int, ...]], decay: float) -> None:
    """To 1e-6 of each element, or of the learning rate where it is near 0."""
    found = []
    for fused in (False, True):
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=decay, fused=fused)
        for _ in range(10):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        found.append([*parameters, *(value for state in optimizer.state.values() for value in state.values())])
    for default, fused_one in zip(*found, strict=True):
        torch.testing.assert_close(fused_one, default, rtol=1e-6, atol=1e-8)


def test_a_checkpoint_of_one_is_resumed_with_the_other_under_each_stage(tmp_path: Path) -> None:
    """``save_optimizer`` and ``load_optimizer`` with real engines: three steps of each, compared with six of the default."""
    code = f"import sys; sys.path[:0] = ['{ROOT}/src', '{ROOT}', '{ROOT}/tests', '{ROOT}/tests/support', '{ROOT}/tests/integration/training']; import test_optimizer; test_optimizer.engines('{tmp_path}')"
    machine = hardware.detect()
    deepspeed_ops.prepare([] if machine.gpus else [deepspeed_ops.SHARED_MEMORY], machine)
    rendezvous = {
        **os.environ,
        **deepspeed_ops.environment(machine),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=rendezvous, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 * len(STAGES)
    for case, (apart, steps) in found.items():
        assert apart <= 1e-6 and steps == 6, case


def engines(scratch: str) -> None:
    """Run in a subprocess: the difference between both halves and the whole, relative to the largest weight."""
    import deepspeed

    from hydraft.checkpoint import optimizer_state

    torch.distributed.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)

    def made(stage: int, fused: bool) -> tuple[object, dict[str, torch.nn.Parameter]]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(7, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        settings = {
            "train_micro_batch_size_per_gpu": 2, "train_batch_size": 2, "gradient_clipping": 1.0, "steps_per_print": 2**31,
            "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
        }  # fmt: skip
        adam = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=settings)
        return engine, dict(engine.module.named_parameters())

    def train(engine: object, steps: range) -> None:
        for step in steps:
            x = torch.randn(2, 7, generator=torch.Generator().manual_seed(step))
            engine.backward(engine(x).square().sum())  # type: ignore[attr-defined]
            engine.step()  # type: ignore[attr-defined]

    def weights(parameters: dict[str, torch.nn.Parameter]) -> torch.Tensor:
        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return torch.cat([parameter.detach().flatten().clone() for parameter in parameters.values()])

    found = {}
    for stage in STAGES:
        engine, parameters = made(stage, fused=False)
        train(engine, range(6))
        whole = weights(parameters)
        for first in (False, True):
            folder = Path(scratch) / f"{stage}-{first}"
            folder.mkdir()
            engine, parameters = made(stage, first)
            optimizer_state.undo_initial_step(engine)
            train(engine, range(3))
            optimizer_state.save_optimizer(engine, parameters, folder)
            step = optimizer_state.adam_step(engine)
            engine, parameters = made(stage, not first)
            optimizer_state.undo_initial_step(engine)
            optimizer_state.load_weights(parameters, folder)
            optimizer_state.load_optimizer(engine, parameters, folder, step)
            train(engine, range(3, 6))
            apart = float((weights(parameters) - whole).abs().max() / whole.abs().max())
            found[f"stage {stage}, fused first: {first}"] = apart, optimizer_state.adam_step(engine)
    print(json.dumps(found))


@pytest.mark.gpu
def test_on_a_gpu_the_count_is_where_the_kernel_reads_it() -> None:
    parameter = torch.randn(64, device="cuda").requires_grad_()
    parameter.grad = torch.randn(64, device="cuda")
    optimizer = torch.optim.AdamW([parameter], fused=True)
    optimizer.step()
    assert optimizer.state[parameter]["step"].device.type == "cuda"
