"""GPUs as NVML and nvidia-smi report them, including unusual output, none of which causes a traceback."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hydraft.system import hardware
from hydraft.system.driver import nvml, smi
from hydraft.system.hardware import Gpu, Hardware
from pretended import GIB, RTX, Device, library, program

Detect = Callable[[], Hardware]
H100 = Device()


@pytest.fixture
def detect(monkeypatch: pytest.MonkeyPatch) -> Detect:
    """Detects the hardware without a cache, and with neither NVML nor nvidia-smi unless a test provides one."""
    monkeypatch.setattr(nvml, "LIBRARIES", ())
    monkeypatch.setattr(smi, "PROGRAMS", ())
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", *hardware.ALLOCATOR):
        monkeypatch.delenv(name, raising=False)
    return hardware.detect.__wrapped__


def with_library(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(nvml, "LIBRARIES", ("libnot-there.so.1", str(file)))


def with_program(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(smi, "PROGRAMS", (str(file),))


def test_nvml_reports_all_properties_of_a_gpu(detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_library(monkeypatch, library(tmp_path, H100, RTX))
    machine = detect()
    assert machine.gpus == (
        Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 9.0, 0, "GPU-11111111-aaaa", 79 * GIB, GIB // 2),
        Gpu("NVIDIA GeForce RTX 4090, D", 24 * GIB, 8.9, 1, "GPU-22222222-bbbb", 20 * GIB, GIB // 2),
    )
    assert (machine.driver, machine.driver_cuda, machine.trouble) == ("580.65.06", "13.0", "")
    assert [(gpu.available, gpu.taken) for gpu in machine.gpus] == [(79 * GIB, GIB // 2), (20 * GIB, 7 * GIB // 2)]


def test_a_gpu_without_nvidia_smi_is_found_by_a_command(tmp_path: Path) -> None:
    """As another machine runs it: with the default library path, in a process without torch."""
    library(tmp_path, RTX)
    code = "import runpy, sys; runpy.run_module('hydraft.system.hardware', run_name='__main__'); assert 'torch' not in sys.modules"
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment = {**kept, "LD_LIBRARY_PATH": str(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    machine = Hardware.from_dict(json.loads(done.stdout))
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA GeForce RTX 4090, D"]


def test_a_driver_before_510_reports_no_reserved_memory(
    detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library(monkeypatch, library(tmp_path, RTX, driver="470.1", cuda=11040, before_510=True))
    machine = detect()
    assert (machine.gpus[0].memory, machine.gpus[0].free, machine.gpus[0].reserved) == (24 * GIB, 20 * GIB, 0)
    assert machine.driver_cuda == "11.4"


def test_a_gpu_without_reported_memory_uses_main_memory(
    detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library(monkeypatch, library(tmp_path, Device("NVIDIA GB10", memory_code=3, capability=(12, 1), mig=-1)))
    machine = detect()
    gpu = machine.gpus[0]
    assert gpu.unified and gpu.memory == machine.memory and gpu.free is None
    assert hardware.ALLOCATOR[0] not in hardware.environment(machine)


def test_a_slice_has_its_own_memory_and_is_selected_by_name(
    detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = [Device("NVIDIA H100 MIG 1g.10gb", f"MIG-{n}", 10 * GIB, 9 * GIB, 0) for n in ("33333333-c", "44444444-d")]
    with_library(monkeypatch, library(tmp_path, dataclasses.replace(H100, mig=1, slices=slices)))
    first = detect()
    assert [(gpu.uuid, gpu.memory, gpu.available) for gpu in first.gpus] == [("MIG-33333333-c", 10 * GIB, 9 * GIB)]
    assert hardware.environment(first)["CUDA_VISIBLE_DEVICES"] == "MIG-33333333-c"
    for variable, expected in (
        ("MIG-4", ["MIG-44444444-d"]),
        ("MIG-4,MIG-3", ["MIG-44444444-d"]),  # CUDA uses only one slice in a process
        ("0", ["MIG-33333333-c"]),
        ("GPU-1", ["MIG-33333333-c"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        assert [gpu.uuid for gpu in detect().gpus] == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with_library(monkeypatch, library(tmp_path / "mixed", dataclasses.replace(H100, mig=1, slices=slices), RTX))
    assert hardware.environment(detect())["CUDA_VISIBLE_DEVICES"] == "1"  # whole GPUs first
    with_library(monkeypatch, library(tmp_path / "bare", dataclasses.replace(H100, mig=1)))
    assert detect().gpus == ()  # MIG is on without a slice: CUDA has no device


@pytest.mark.parametrize(
    ("variable", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        (" 2 , 0 ", [2, 0]),
        ("0,2,-1,1", [0, 2]),  # the example in the CUDA programming guide
        ("0,7,1", [0]),
        ("0,x", [0]),
        ("0,,1", [0]),
        ("1gpu,2", [1, 2]),  # as strtoul parses it
        ("0,1,0", []),
        ("GPU-2", [1]),
        ("GPU-33333333-cccc,GPU-1", [2, 0]),
        ("GPU-1,GPU-11111111", []),
        ("0,MIG-1", [0]),
    ],
)
def test_gpus_are_selected_as_in_cuda(
    variable: str | None, indices: list[int], detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = dataclasses.replace(H100, uuid="GPU-33333333-cccc")
    with_library(monkeypatch, library(tmp_path, H100, RTX, third))
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    machine = detect()
    assert [gpu.index for gpu in machine.gpus] == indices
    given = hardware.environment(machine).get("CUDA_VISIBLE_DEVICES")
    assert given == ",".join(map(str, indices))
    if given:
        assert list(map(int, given.split(","))) == indices  # as DeepSpeed reads it


@pytest.mark.parametrize("variable", ["7", "GPU-9", "GPU-", "x", "0,0", "MIG-1"])
def test_selecting_no_gpu_is_an_error_unless_it_is_explicit(
    variable: str, detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library(monkeypatch, library(tmp_path, H100, RTX))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert detect().unusable.startswith(f"CUDA_VISIBLE_DEVICES={variable}: no GPU has this number or name; use 0 to 1")
    monkeypatch.setattr(nvml, "LIBRARIES", ())
    assert detect().unusable == ""  # without GPUs, the variable has no effect


def test_gpus_are_ordered_by_pci_bus(detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_library(monkeypatch, library(tmp_path, RTX, H100))
    assert hardware.environment(detect())["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert "use CUDA_DEVICE_ORDER=PCI_BUS_ID" in detect().unusable
    with_library(monkeypatch, library(tmp_path / "alike", H100, dataclasses.replace(H100, uuid="GPU-5")))
    assert detect().trouble == ""


def test_a_lost_gpu_is_reported(detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_library(monkeypatch, library(tmp_path, H100, dataclasses.replace(RTX, handle_code=15)))
    assert detect().unusable == (
        "card 1 does not respond (GPU is lost): restart the machine, or leave it out: CUDA_VISIBLE_DEVICES=0"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert detect().trouble == "" and detect().count == 1
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with_library(monkeypatch, library(tmp_path / "not_ours", dataclasses.replace(RTX, handle_code=4), H100))
    # A GPU that this process may not open is not counted by CUDA either.
    assert [(gpu.name, gpu.index) for gpu in detect().gpus] == [(H100.name, 0)]


def test_a_driver_that_was_replaced_while_loaded_is_reported(
    detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library(monkeypatch, library(tmp_path, H100, init=18))
    assert detect().unusable.startswith("Driver/library version mismatch: restart the machine")
    with_library(monkeypatch, library(tmp_path / "none", H100, init=9))  # without a driver, the library lists no GPU
    assert (detect().gpus, detect().trouble) == ((), "")


ROW = "NVIDIA H100 80GB HBM3, 81920, 80896, 512, 9.0, 580.65.06, GPU-11111111-aaaa, Disabled"


def test_nvidia_smi_reports_the_same(detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = "NVIDIA GeForce RTX 4090, D, 24576, 20480, 512, 8.9, 580.65.06, GPU-22222222-bbbb, [N/A]"
    with_program(monkeypatch, program(tmp_path / "bin", f"echo; echo '{ROW}'; echo '{second}'; echo"))
    by_smi = detect()
    with_library(monkeypatch, library(tmp_path / "lib", H100, RTX))
    assert by_smi == detect()


OLD_SMI = """case "$*" in
*reserved*) echo 'Field "memory.reserved" is not a valid field to query.'; exit 2;;
*compute_cap*) echo 'Tesla T4, 15360, 7.5';;
esac"""

OLDEST_SMI = """case "$*" in
*compute_cap*) exit 2;;
*driver_version*) echo 'Tesla T4, 15360, 418.87.00';;
esac"""

MIG_SMI = f"""case "$*" in
-L) echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-aaaa)'; echo '  MIG 1g.10gb     Device  0: (UUID: MIG-33333333-c)';;
*) echo '{ROW.replace("Disabled", "Enabled")}';;
esac"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (OLD_SMI, ("Tesla T4", 15 * GIB, 7.5, "")),
        (OLDEST_SMI, ("Tesla T4", 15 * GIB, 0.0, "418.87.00")),
        ("echo 'NVIDIA GB10, [N/A], [N/A], [N/A], 12.1, 580.95.05, GPU-5, [N/A]'", ("NVIDIA GB10", None, 12.1, "580.95.05")),
        (MIG_SMI, ("MIG 1g.10gb", round(9.5 * GIB), 9.0, "580.65.06")),
        ("printf 'NVIDIA \\377, 1024, 1024, 0, 9.0, 580.1, GPU-5, [N/A]'", ("NVIDIA �", GIB, 9.0, "580.1")),
    ],
)  # fmt: skip
def test_outputs_of_nvidia_smi(
    script: str, expected: tuple[object, ...], detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_program(monkeypatch, program(tmp_path, script))
    machine = detect()
    name, memory, capability, version = expected
    gpu = machine.gpus[0]
    assert (gpu.name, gpu.memory, gpu.compute_capability) == (name, memory or machine.memory, capability)
    assert (machine.driver, gpu.unified) == (version, memory is None)


@pytest.mark.parametrize(
    "script",
    ["exit 9", "", "echo", "echo 'No devices were found'", "echo a,b; exit 0", "echo 'NVIDIA-SMI has failed'; exit 9", "kill -9 $$"],
)  # fmt: skip
def test_nvidia_smi_without_gpus(script: str, detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_program(monkeypatch, program(tmp_path, script))
    machine = detect()
    assert (machine.gpus, machine.trouble) == ((), "")
    assert hardware.environment(machine) == {"CUDA_VISIBLE_DEVICES": ""}  # torch finds none either


def test_an_error_in_place_of_a_size_is_reported(
    detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_program(monkeypatch, program(tmp_path, f"echo '{ROW.replace('81920', '[Unknown Error]')}'"))
    assert "card 0 does not respond (Unknown Error)" in detect().unusable


def test_a_hanging_nvidia_smi_is_reported(detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smi, "SECONDS", 0.3)
    with_program(monkeypatch, program(tmp_path, "exec sleep 60"))
    assert "nvidia-smi has not responded" in detect().unusable


def test_a_file_that_is_not_executable(detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = program(tmp_path, "")
    file.write_bytes(b"\x7fELF of another machine")
    with_program(monkeypatch, file)
    assert detect().gpus == ()


def test_the_driver_is_not_queried_if_no_gpu_is_visible(
    detect: Detect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "query", lambda: pytest.fail("the driver was queried"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect().gpus == ()
