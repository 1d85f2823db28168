"""The notebooks of examples/, in a real Jupyter kernel."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from conftest import ROOT, SCALE

if TYPE_CHECKING:
    from warm_python import WarmPython

EXAMPLES = ROOT / "examples"


def _code(name: str) -> list[str]:
    return [cell.source for cell in nbformat.read(EXAMPLES / name, as_version=4).cells if cell.cell_type == "code"]


def test_the_notebooks_of_both_languages_have_the_same_code_and_no_outputs() -> None:
    assert _code("quickstart.ipynb") == _code("quickstart.zh.ipynb")
    for file in EXAMPLES.glob("*.ipynb"):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_a_notebook_runs(tmp_path: Path, python: "WarmPython", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    first = nbformat.v4.new_code_cell(f"import sys\nsys.executable = {str(python.path)!r}")  # commands start faster
    notebook.cells.insert(0, first)
    manager = KernelManager(kernel_name="python3")
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv[0] = sys.executable
    client = NotebookClient(
        notebook, km=manager, timeout=int(300 * SCALE), resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    text = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    html = [output["data"]["text/html"] for output in text if "text/html" in output.get("data", {})]
    assert any("data:image/png" in one for one in html) and any("learning_rate" in one for one in html)
    *_, last = (output["text"] for output in text if output.get("name") == "stdout")
    assert last.startswith(str(tmp_path / "multirun"))
