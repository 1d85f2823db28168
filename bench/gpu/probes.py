"""Measurements of a GPU, each in its own process: python -m bench.gpu.probes OUT.jsonl [shared|alone|NAME …]

Each result is a line of JSON (probe, answer, error, seconds) appended to OUT.jsonl. ``shared`` are the probes that may
run while other processes use the GPU, ``alone`` those that may not. Without a GPU, probes that need one are skipped.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 60
"""Time limit of a probe."""
MIB = 2**20


def versions() -> Any:
    """Versions of packages, CUDA and NCCL, and the library that bitsandbytes has loaded."""
    import importlib

    import torch

    names = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes", "accelerate", "triton")
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError:
            found[name] = None
    found |= {"python": sys.version.split()[0], "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        import bitsandbytes

        found |= {"arch": torch.cuda.get_arch_list(), "nccl": torch.cuda.nccl.version()}
        found["bitsandbytes library"] = str(bitsandbytes.cextension.lib._lib)
    return found


def imports() -> Any:
    """Import times of a rank's modules in seconds, each in a new process."""
    found = {}
    for module in ("torch", "hydraft.training.worker"):
        code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found[module] = round(float(done.stdout.splitlines()[-1]), 1)
    return found


def detected() -> Any:
    """The GPUs that hydraft and torch detect; with ``CUDA_VISIBLE_DEVICES=-1`` both must find none."""
    hidden = "import torch; from hydraft.system import hardware; print(len(hardware.detect().gpus), torch.cuda.device_count())"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", hidden], env=environment, capture_output=True, text=True, check=True)
    began = time.perf_counter()
    from hydraft.system import hardware

    machine = hardware.detect()
    seconds = time.perf_counter() - began
    import torch

    return {
        "seconds": round(seconds, 2),
        "hydraft": [[gpu.name, gpu.memory // MIB] for gpu in machine.gpus],
        "torch": [
            [torch.cuda.get_device_name(number), torch.cuda.get_device_properties(number).total_memory // MIB]
            for number in range(torch.cuda.device_count())
        ],
        "hidden (hydraft, torch)": done.stdout.split(),
    }


FORKS = """
import json
from pathlib import Path
from hydraft.launch.local import fork_server
from hydraft.launch.local.preload import PRELOADED
links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
opened = sorted({link for link in links if link.startswith("/dev/nvidia")})
print(json.dumps({"unusable": fork_server.forks_without_gpu(), "touching": PRELOADED.touching, "open": opened}))
"""


def forks() -> Any:
    """Whether forks of a process with the fork server's imports can use a GPU, and what these imports have opened."""
    from hydraft.launch.local.fork_server import BY_NVML
    from hydraft.system import hardware
    from hydraft.training import deepspeed_ops

    environment = {**os.environ, BY_NVML: "1", **deepspeed_ops.environment(hardware.detect())}
    done = subprocess.run([sys.executable, "-c", FORKS], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def attention() -> Any:
    """Flash attention over documents: the parameters of varlen_attn, and whether forward and backward are finite."""
    import inspect

    import torch
    from torch.nn.attention.varlen import varlen_attn

    names = list(inspect.signature(varlen_attn).parameters)
    query, key, value = (
        torch.randn(300, heads, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (32, 8, 8)
    )
    bounds = torch.tensor([0, 100, 101, 300], dtype=torch.int32, device="cuda")
    more: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in names else {}
    out: Any = varlen_attn(query, key, value, bounds, bounds, 199, 199, window_size=(-1, 0), **more)
    gradients = torch.autograd.grad(out.float().square().sum(), (query, key, value))
    finite = all(bool(tensor.isfinite().all()) for tensor in (out, *gradients))
    return {"parameters": names, "finite": finite}


def matmul() -> Any:
    """FLOP/s of a matrix product, best of several rounds: bf16 8,192 x 8,192 on a GPU, fp32 1,024 x 1,024 on a CPU."""
    from bench.throughput import matmul_rate

    return {"FLOP/s": round(matmul_rate())}


CONTEXT = """
import sys, tempfile, torch
def reach(name):
    torch.cuda.synchronize()
    print(name, torch.cuda.memory_reserved(), flush=True)
    sys.stdin.readline()
x = torch.zeros(1, device="cuda")
reach("bare context")
y = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
y @ y
import bitsandbytes as bnb
packed, state = bnb.functional.quantize_4bit(y, quant_type="nf4", compress_statistics=True, quant_storage=torch.bfloat16)
bnb.matmul_4bit(y, packed, state)
reach("with cublas and bitsandbytes")
import torch.distributed as dist
dist.init_process_group("nccl", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
dist.all_reduce(y)
dist.broadcast(y, 0)
reach("with NCCL, one rank")
"""


def context() -> Any:
    """GPU memory in MiB of another process, without torch's own blocks, step by step, and the plan's constant."""
    import torch

    from hydraft.plan.memory import DRIVER

    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    before, total = torch.cuda.mem_get_info()
    found: dict[str, Any] = {"total": total // MIB, "plan": DRIVER // MIB}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CONTEXT], **pipes) as child:  # type: ignore[call-overload]
        for line in child.stdout:
            name, _, reserved = line.strip().rpartition(" ")
            if not reserved.isdigit():
                continue
            found[name] = (before - torch.cuda.mem_get_info()[0] - int(reserved)) // MIB
            child.stdin.write("\n")
            child.stdin.flush()
    if child.returncode:
        raise RuntimeError(f"ended with code {child.returncode} after {list(found)[-1]}")
    return found


def collectives() -> Any:
    """Seconds to create the process group and run a first all-reduce: nccl on a GPU, gloo on a CPU."""
    import torch
    import torch.distributed as dist

    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        dist.all_reduce(torch.ones(3, device=device))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        dist.destroy_process_group()
    return {"backend": backend, "seconds": round(seconds, 2)}


SHARED: dict[str, Callable[[], Any]] = {
    "versions": versions,
    "detected": detected,
    "forks": forks,
    "attention": attention,
    "collectives": collectives,
}
ALONE: dict[str, Callable[[], Any]] = {"matmul": matmul, "context": context, "imports": imports}
PROBES = SHARED | ALONE
NEED_CARD = ("attention", "context")
GROUPS = {"shared": list(SHARED), "alone": list(ALONE)}


def run_probe(name: str, card: bool) -> dict[str, Any]:
    """Run a probe in a new process."""
    began = time.perf_counter()
    answer, error = None, None
    if name in NEED_CARD and not card:
        return {"probe": name, "answer": None, "error": "skipped: needs a GPU", "seconds": 0}
    try:
        command = [sys.executable, "-m", "bench.gpu.probes", "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode == 0:
            answer = json.loads(done.stdout.strip().splitlines()[-1])
        else:
            error = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "?")
    except subprocess.TimeoutExpired:
        error = f"more than {SECONDS} s"
    return {"probe": name, "answer": answer, "error": error, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    """Run one probe and print it, or several, each in a new process."""
    arguments = sys.argv[1:]
    if arguments[0] == "--one":
        print(json.dumps(PROBES[arguments[1]]()))
        return
    from bench.results import device

    card = device() == "cuda"
    names = [name for word in arguments[1:] or GROUPS for name in GROUPS.get(word, [word])]
    failed = False
    for name in names:
        found = run_probe(name, card)
        failed |= found["answer"] is None and not str(found["error"]).startswith("skipped")
        line = json.dumps(found, ensure_ascii=False)
        print(line, flush=True)
        with Path(arguments[0]).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
