"""bitsandbytes is imported without torch's compiler, which its decorated functions load upon their first call."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hydraft.system import bitsandbytes_import

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
REAL = """
import sys
from hydraft.system import bitsandbytes_import
bitsandbytes_import.prepare()
assert "torch" not in sys.modules
import bitsandbytes, torch
assert bitsandbytes_import.DECORATED in sys.modules
assert not [finder for finder in sys.meta_path if finder.__class__.__module__.startswith("hydraft")]
print(sorted({"torch._dynamo", "torch._inductor.compiler_bisector"} & sys.modules.keys()))
"""


def test_functions_are_compiled_upon_their_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict[str, Any]] = []

    def compile_now(model: Any = None, **options: Any) -> Any:
        if model is None:
            return lambda model: compile_now(model, **options)
        compiled.append(options)
        return model

    monkeypatch.setattr(torch, "compile", compile_now)
    monkeypatch.setattr(bitsandbytes_import, "DECORATED", "decorates_by_compiling")
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "decorates_by_compiling.py").write_text(DECORATES)
    bitsandbytes_import.prepare()
    module: Any = __import__("decorates_by_compiling")
    assert torch.compile is compile_now and compiled == []
    assert (module.doubled(2, more=1), module.doubled(3), module.tripled(2)) == (5, 6, 6)
    assert compiled == [{"dynamic": False}, {}]
    assert (module.doubled.__name__, module.doubled.__doc__) == ("doubled", "twice")


def test_the_installed_one_loads_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
