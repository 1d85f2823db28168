"""Simulates a torch with CUDA and one GPU, and logs every call that would touch the driver.

Put this folder first on PYTHONPATH and on PATH (for nvidia-smi). The Python code of torch.cuda is unchanged; the
functions of torch._C that it calls are replaced, and so is NVML's count. As with CUDA, a fork of a process that has
touched the driver cannot use it. Nothing can be computed on the simulated GPU: see ``_after_arguments``.

    PRETEND_CUDA_LOG    a file with a JSON object per line: pid, parent, command, call, stack; the call is ``fork`` if a
                        process that has touched the driver forks
    PRETEND_CUDA_NVML   0: without NVML, so that even torch.cuda.device_count() uses the driver
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import traceback
import types
from pathlib import Path

state = {"touched": False, "bad_fork": False}


def _write(call):
    log = os.environ.get("PRETEND_CUDA_LOG")
    if log is None:
        return
    frames = traceback.extract_stack()[:-2]
    stack = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames if "importlib" not in frame.filename]
    command = Path("/proc/self/cmdline").read_text().replace("\0", " ").strip()
    line = {"pid": os.getpid(), "parent": os.getppid(), "command": command, "call": call, "stack": stack[::-1]}
    with Path(log).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _touch(call):
    _write(call)
    state["touched"] = True


def _before_fork():
    if state["touched"]:
        _write("fork")


def _after_fork():
    state["bad_fork"] = state["touched"]


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _driver(name, result=None):
    def call(*_):
        _touch(name)
        return result

    return call


def _before_torch_cuda():
    import torch

    def init():
        _touch("_cuda_init")
        properties = types.SimpleNamespace(major=9, minor=0, name="a simulated GPU", total_memory=80 * 2**30)
        torch.cuda._get_device_properties = lambda index: properties
        torch.cuda.default_generators = (torch.Generator(),)

    torch.version.cuda = "13.0"
    torch._C._cudart = types.ModuleType("torch._C._cudart")
    torch._C._cuda_isInBadFork = lambda: state["bad_fork"]
    torch._C._cuda_init = init
    torch._C._cuda_getDeviceCount = _driver("_cuda_getDeviceCount", 1)
    torch._C._cuda_getDevice = _driver("_cuda_getDevice", 0)
    torch._C._cuda_setDevice = _driver("_cuda_setDevice")
    torch._C._cuda_getArchFlags = lambda: "sm_90"
    torch._C._cuda_getCompiledVersion = lambda: 13000
    torch._C._cuda_getCurrentRawStream = lambda index: 0


def _after_torch_cuda(module):
    if os.environ.get("PRETEND_CUDA_NVML") != "0":
        module._raw_device_count_nvml = lambda: 1


class _Loader(importlib.abc.Loader):
    def __init__(self, inner, before, after):
        self.inner, self.before, self.after = inner, before, after

    def create_module(self, spec):
        return self.inner.create_module(spec)

    def exec_module(self, module):
        self.before()
        self.inner.exec_module(module)
        self.after(module)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def _after_arguments(module):
    """Let a rank compute on the CPU once its process group has a backend.

    NCCL is then replaced by gloo, for the device types of the backend. Until DeepSpeed moves the model, its tensors are
    in main memory, as on a machine with a GPU: a collective on them fails with torch's message if the group has no
    backend for CPUs.
    """
    import torch
    from torch import distributed

    deepspeed, arguments, chosen = module.deepspeed, module.TrainingArguments, {"cpu": True}
    init_distributed, initialize = deepspeed.init_distributed, deepspeed.initialize

    def init(dist_backend, **rest):
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        _write(f"init_distributed({dist_backend})")
        chosen["cpu"] = "gloo" in dist_backend
        torch.cuda.is_available, torch.cuda.device_count = (lambda: False), (lambda: 0)
        set_accelerator(CPU_Accelerator())
        # not used with a GPU; if built here, it would replace the one of the environment
        deepspeed.comm.torch.build_shm_op = lambda: None
        return init_distributed(dist_backend="cpu:gloo,cuda:gloo", **rest)

    def refusing(collective):
        def call(tensor, *rest, **named):
            if not chosen["cpu"]:
                raise RuntimeError("No backend type associated with device type cpu")
            return collective(tensor, *rest, **named)

        return call

    def engine(*rest, **named):
        chosen["cpu"] = True
        return initialize(*rest, **named)

    deepspeed.init_distributed, deepspeed.initialize = init, engine
    distributed.broadcast, distributed.all_reduce = refusing(distributed.broadcast), refusing(distributed.all_reduce)
    module.TrainingArguments = lambda **named: arguments(**{**named, "use_cpu": True, "dataloader_pin_memory": False})


HOOKS = {
    "hydraft.training.arguments": (lambda: None, _after_arguments),
    "torch.cuda": (_before_torch_cuda, _after_torch_cuda),
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in HOOKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, *HOOKS[name])
        return spec


sys.meta_path.insert(0, _Finder())
