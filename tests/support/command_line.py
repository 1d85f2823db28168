"""A command line in this process: composed, checked and refused as train.py and infer.py do it, without a process for each."""

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from hydraft.config import cli


def refused(
    monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str, task: Callable[[Any], Any] | None = None
) -> str:
    """The one line that ``python <command>.py <arguments>`` ends with, which must be code 2 and nothing else.

    Args:
        command: ``train`` or ``infer``.
        task: what gets the composed config; by default what the script does with it.
    """
    code, line = ended(monkeypatch, command, *arguments, task=task)
    assert code == 2 and line.count("\n") == 1 and line.startswith(f"{command}.py: "), (arguments, code, line[-2000:])
    return line


def ended(
    monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str, task: Callable[[Any], Any] | None = None
) -> tuple[int, str]:
    """The exit code and what is printed on stderr; nothing may be printed on stdout when the code is 2."""
    chosen = task or getattr(importlib.import_module(command), command)
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *arguments])
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(chosen, command)
    finally:
        GlobalHydra.instance().clear()
    assert code != 2 or out.getvalue() == ""
    return code, err.getvalue()
