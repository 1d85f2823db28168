"""Print figures about the structure of the package: python bench/structure.py.

These are the modules at the package's root, the modules and lines of each package, the longest functions and files, and
the functions with most parameters. ``tests/unit/test_structure.py`` checks the limits and the order of imports.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "hydraft"

ORDER = (
    "errors", "system", "config", "data", "models", "plan", "runs", "tracking", "evaluation", "checkpoint", "training", "launch",
    "sweep", "infer", "board", "api", "__main__",
)  # fmt: skip
"""The packages: each may import only those before it. ``__main__`` runs commands of all of them."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name below ``hydraft``; a package is listed with the file of its ``__init__``."""
    found = {}
    for file in SOURCE.rglob("*.py"):
        name = ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        found[name] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """The modules of this package that a file imports, also lazily, under TYPE_CHECKING, by ``import_module`` or ``import_large``.

    Yields:
        The name below ``hydraft`` and the line.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            names = [_module(f"{node.module}.{alias.name}", node.module or "", known) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "import_large")):
            names = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        for name in names:
            if name == "hydraft" or name.startswith("hydraft."):
                yield name.removeprefix("hydraft").removeprefix("."), getattr(node, "lineno", 0)


def mentioned(file: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """The modules of this package that a file names in strings, to import them later or to run them as commands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("hydraft."):
            name = node.value.removeprefix("hydraft.")
            if name in known:
                yield name, node.lineno


def _module(full: str, parent: str, known: dict[str, Path]) -> str:
    """Resolve ``from parent import name``: the module ``name`` if it is one, else ``parent``."""
    return full if full.removeprefix("hydraft.") in known else parent


def external(file: Path) -> Iterator[tuple[str, int]]:
    """Other packages that a file imports at any level, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0], node.lineno


@dataclass(frozen=True)
class Function:
    """A function or method."""

    name: str
    where: str
    lines: int
    parameters: int
    """Parameters without self and cls."""


def functions() -> list[Function]:
    """All functions and methods of the package, and of train.py and infer.py."""
    found = []
    root = SOURCE.parents[1]
    for file in [*SOURCE.rglob("*.py"), root / "train.py", root / "infer.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                named = [x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x is not None]
                count = sum(x.arg not in ("self", "cls") for x in named)
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append(Function(node.name, f"{file.relative_to(root)}:{node.lineno}", lines, count))
    return found


def main() -> None:
    """Print the figures."""
    known = modules()
    print("at the root:", ", ".join(sorted(file.name for file in SOURCE.glob("*.py"))))
    for package in ORDER[:-1]:
        files = [file for name, file in known.items() if name.partition(".")[0] == package]
        lines = sum(file.read_text(encoding="utf-8").count("\n") for file in files)
        print(f"  {package:12} {len(files):3} files {lines:6,} lines")
    longest = max(SOURCE.rglob("*.py"), key=lambda file: file.read_text(encoding="utf-8").count("\n"))
    print(f"longest file: {longest.relative_to(SOURCE)}, {longest.read_text(encoding='utf-8').count(chr(10))} lines")
    for title, key in (("longest functions", "lines"), ("most parameters", "parameters")):
        print(f"{title}:")
        for one in sorted(functions(), key=lambda one: -getattr(one, key))[:5]:
            print(f"  {getattr(one, key):3} {one.where} {one.name}")


if __name__ == "__main__":
    main()
