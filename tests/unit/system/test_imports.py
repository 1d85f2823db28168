"""Large imports leave torch's compiler for the first call of what they decorate."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from hydraft.system.imports import import_large

DECORATES = """
import gc, torch

collects = gc.isenabled()

@torch.compile(dynamic=False)
def doubled(x, *, more=0):
    "twice"
    return 2 * x + more

tripled = torch.compile(lambda x: 3 * x)
layer = torch.compile(torch.nn.Identity())
"""


def test_functions_are_compiled_upon_their_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[Any, dict[str, Any]]] = []

    def compile_now(model: Any, **options: Any) -> Any:
        compiled.append((model, options))
        return model

    monkeypatch.setattr(torch, "compile", compile_now)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "decorates_by_compiling.py").write_text(DECORATES)
    module = import_large("decorates_by_compiling")
    assert torch.compile is compile_now and gc.isenabled() and not module.collects
    assert [type(model) for model, _ in compiled] == [torch.nn.Identity], "a module is compiled at once"
    assert (module.doubled(2, more=1), module.doubled(3), module.tripled(2)) == (5, 6, 6)
    assert [options for _, options in compiled[1:]] == [{"dynamic": False}, {}]
    assert (module.doubled.__name__, module.doubled.__doc__) == ("doubled", "twice")


def test_torch_is_as_before_after_a_failed_import() -> None:
    before = torch.compile
    with pytest.raises(ModuleNotFoundError):
        import_large("no_such_module")
    assert torch.compile is before and gc.isenabled()
