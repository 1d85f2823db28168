"""Text without the folders of this machine, for what is published. No torch."""

import contextlib
import re
import tempfile
from pathlib import Path, PurePosixPath

from hydraft.config.lora import start_name
from hydraft.config.printed import shell_word
from hydraft.system.source_tree import ROOT

SEPARATORS = r"""[\s,;|&<>()\[\]{}"'`…]"""

DEEP = re.compile(rf"(?<![\w/.~{{}}])(?:file://)?(?:~[\w.-]*)?(?:/(?:(?!{SEPARATORS})[^/:=])+){{2,}}/?")
"""A path of two names or more, in any text; ``[/INST]`` and ``</s>`` are none, and neither is an address such as https://host/a/b."""

PIECE = re.compile(r"""[^,\[\]{}"'|;]+""")
"""A part of an override's value that may be one path, with spaces in it."""


def text(given: str) -> str:
    """``given`` with the name only of each path that says where this machine keeps its files; those of the project begin there."""
    for folder in _here():
        known = rf"(?<![\w/.~-]){re.escape(str(folder))}"
        if folder == ROOT:
            given = re.sub(rf"{known}/(?=[\w.])", "", given)
        else:  # its own name may have spaces
            given = re.sub(rf"{known}(?=/|$|{SEPARATORS})", "/_/" + re.sub(r"\W", "_", folder.name), given)
    return DEEP.sub(lambda found: PurePosixPath(found[0]).name, given)


def word(override: str) -> str:
    """One argument of a command, as ``text`` does; a value that is a path may have spaces."""
    key, sign, value = override.partition("=")
    if not sign:
        return text(_path(override))
    if key.lstrip("+~") == "lora.start" and _is_folder(value):
        return f"{key}={start_name(value)}"
    return f"{key}={text(PIECE.sub(lambda found: _path(found[0]), value))}"


def source(given: str) -> str:
    """A source of records (``data.train``), or another value that names files, as ``text`` does."""
    return word(f"source={given}").removeprefix("source=")


def line(words: list[str]) -> str:
    """A command of such words, for a shell."""
    return " ".join(shell_word(word(each)) for each in words)


def _path(piece: str) -> str:
    """The name of a path that begins in this machine's folders; other text as it is."""
    stripped = piece.strip()
    if not _is_folder(stripped):
        return piece
    own = PurePosixPath(stripped.removeprefix("file://"))
    shown = str(own.relative_to(ROOT)) if own.is_relative_to(ROOT) and own != PurePosixPath(ROOT) else own.name
    return piece.replace(stripped, shown or "/")


def _is_folder(given: str) -> bool:
    """Whether the whole of ``given`` is a path outside the current folder; ``/INST`` could be a part of a template."""
    path = given.removeprefix("file://")
    return path.startswith(("/", "~", "../")) and "://" not in path and path.strip("/").count("/") > 0


def _here() -> list[Path]:
    """This machine's folders that a text may name: the project's, the current and temporary ones, and the user's; deep ones first."""
    found = {ROOT, Path.cwd(), Path(tempfile.gettempdir())}
    with contextlib.suppress(RuntimeError):  # no home
        found.add(Path.home())
    return sorted((each for each in found if len(each.parts) > 1), key=lambda each: len(each.parts), reverse=True)
