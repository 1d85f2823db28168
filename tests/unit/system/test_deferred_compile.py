"""bitsandbytes and DeepSpeed's Muon are imported without torch's compiler, which their functions load upon their first call."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hydraft.system import deferred_compile

DECORATES = """
import torch

@torch.compile(dynamic=False)
def doubled(x, *, more=0):
    "twice"
    return 2 * x + more

def tripled(x):
    return 3 * x

tripled = torch.compile(tripled)
"""
CALLS_EACH_OTHER = """
import torch

@torch.compile
def doubled(x):
    return 2 * x

@torch.compile(fullgraph=True)
def doubled_and_one_more(x):
    return doubled(x) + 1
"""
REAL = """
import sys
from hydraft.system import deferred_compile
deferred_compile.prepare()
assert "torch" not in sys.modules
import bitsandbytes, torch
print(sorted({"torch._dynamo", "torch._inductor.compiler_bisector"} & sys.modules.keys()))
import deepspeed.runtime.zero.muon.muon_optimizer
assert deferred_compile.DECORATED <= sys.modules.keys()
print("torch._inductor.compile_fx" in sys.modules)
"""


def test_functions_are_compiled_upon_their_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict[str, Any]] = []

    def compile_now(model: Any = None, **options: Any) -> Any:
        if model is None:
            return lambda model: compile_now(model, **options)
        compiled.append(options)
        return model

    monkeypatch.setattr(torch, "compile", compile_now)
    monkeypatch.setattr(deferred_compile, "DECORATED", {"decorates_by_compiling"})
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "decorates_by_compiling.py").write_text(DECORATES)
    deferred_compile.prepare()
    module: Any = __import__("decorates_by_compiling")
    assert torch.compile is compile_now and compiled == []
    assert (module.doubled(2, more=1), module.doubled(3), module.tripled(2)) == (5, 6, 6)
    assert compiled == [{"dynamic": False}, {}]
    assert (module.doubled.__name__, module.doubled.__doc__) == ("doubled", "twice")


def test_a_function_that_another_compiled_one_calls_is_compiled_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(deferred_compile, "DECORATED", {"calls_each_other"})
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "calls_each_other.py").write_text(CALLS_EACH_OTHER)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    deferred_compile.prepare()
    module: Any = __import__("calls_each_other")
    assert graphs == []
    assert module.doubled_and_one_more(torch.tensor(3)) == 7
    assert len(graphs) == 1


def test_the_installed_ones_load_no_compiler() -> None:
    quiet = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=False, env=quiet)
    assert (done.returncode, done.stdout) == (0, "[]\nFalse\n"), done.stderr
