"""What is done with the hardware that was detected: the variables of processes, its JSON, and torch's view of the same GPUs."""

import json
import os
import subprocess
import sys

import pytest

from hydraft.launch.local import fork_server
from hydraft.system import hardware
from hydraft.system.hardware import Gpu, Hardware
from pretended import GIB


def test_a_fork_server_sees_no_gpu_that_the_driver_does_not_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other hosts get the value that the user has set, not this one."""
    card = Hardware(gpus=(Gpu("card", GIB, 9.0),))
    seen = []
    monkeypatch.setattr(
        fork_server.forkserver, "ensure_running", lambda: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    )
    for given in (None, "1"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        for machine in (Hardware(), card):
            fork_server.start([], machine)
            assert os.environ.get("CUDA_VISIBLE_DEVICES") == given
    assert seen == ["", "0", "", "0"]


def test_the_users_allocator_settings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Hardware(gpus=(Gpu("card", GIB, 9.0),))
    for name in hardware.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    assert hardware.environment(machine)["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    for name in hardware.ALLOCATOR:
        with monkeypatch.context() as patch:
            patch.setenv(name, "max_split_size_mb:64")
            assert "PYTORCH_CUDA_ALLOC_CONF" not in hardware.environment(machine)


def test_hardware_of_another_version_is_read() -> None:
    old = {
        "gpus": [{"name": "A100", "memory": 1, "compute_capability": 8.0}],
        "cpus": 2,
        "memory": 3,
        "machine": "x86_64",
    }
    assert Hardware.from_dict(old) == Hardware((Gpu("A100", 1, 8.0),), 2, 3, "x86_64")
    newer = {**old, "new": 1, "gpus": [{**old["gpus"][0], "new": 1}]}  # type: ignore[dict-item, index]
    assert Hardware.from_dict(newer) == Hardware.from_dict(old)
    machine = Hardware((Gpu("A100", 1, 8.0, 0, "GPU-1", 1, 1),), driver="580", torch_cuda="13.0")
    assert Hardware.from_dict(json.loads(json.dumps(machine.to_dict()))) == machine


@pytest.mark.gpu
def test_torch_sees_the_detected_gpus() -> None:
    """In separate processes, since CUDA reads its variables only once."""
    code = (
        "import os\nfrom hydraft.system import hardware\nmachine = hardware.detect()\nos.environ.update(hardware.environment(machine))\n"
        "import torch\nassert torch.cuda.device_count() == machine.count > 0\n"
        "for index, gpu in enumerate(machine.gpus):\n"
        "    found = torch.cuda.get_device_properties(index)\n"
        "    assert found.name == gpu.name and f'{found.major}.{found.minor}' == str(gpu.compute_capability)\n"
        "    assert gpu.is_slice or str(found.uuid) in gpu.uuid\n"
        "    assert gpu.unified or abs(found.total_memory - (gpu.memory - gpu.reserved)) < 0.02 * gpu.memory\n"
    )
    names = [gpu.uuid for gpu in hardware.detect().gpus]
    for variable in (None, names[-1], names[-1][:12]):
        chosen = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **chosen}, check=True)
