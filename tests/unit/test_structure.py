"""Fifteen packages in one order, checked in the source: lazy and type-checking imports and ``import_module`` or ``import_large`` count."""

import ast

import pytest

from bench.structure import ORDER, SOURCE, external, functions, imports, mentioned, modules

MODULES = modules()
NO_TORCH = ("errors", "system", "config", "plan", "runs", "tracking", "sweep", "board", "__main__")
TORCH_PACKAGES = {"torch", "transformers", "peft", "deepspeed", "bitsandbytes", "accelerate", "datasets"}
LIMITS = {"lines": 60, "parameters": 6, "file": 300}


def package(name: str) -> str:
    return name.partition(".")[0]


def edges() -> dict[str, dict[str, str]]:
    """The modules that each module imports, with the place."""
    found: dict[str, dict[str, str]] = {}
    for name, file in MODULES.items():
        for other, line in imports(file, MODULES):
            found.setdefault(name, {})[other] = f"{file.relative_to(SOURCE)}:{line}"
    return found


EDGES = edges()


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of a cycle, with the first one repeated at the end; empty if there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    for start in sorted(graph):
        if found := visit(start):
            return found
    return []


def test_a_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_the_root_has_three_files_and_fourteen_packages() -> None:
    assert {file.name for file in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    folders = {folder.name for folder in SOURCE.iterdir() if folder.is_dir() and folder.name != "__pycache__"}
    assert folders == set(ORDER) - {"errors", "__main__"}


def test_every_name_in_the_order_is_a_module() -> None:
    missing = {
        f"{place}: {other}" for found in EDGES.values() for other, place in found.items() if other not in MODULES
    }
    assert not missing


def test_no_import_from_a_later_package() -> None:
    rank = {name: position for position, name in enumerate(ORDER)}
    for name, file in MODULES.items():
        named = [*imports(file, MODULES), *mentioned(file, MODULES)]
        violations = [
            f"{file}:{line} names {other}"
            for other, line in named
            if name and rank[package(other)] > rank[package(name)]
        ]
        assert not violations


def test_no_cycle_of_modules() -> None:
    assert not cycle({name: set(found) - {name} for name, found in EDGES.items()})


def test_no_cycle_of_packages_and_subpackages() -> None:
    """A package's own modules count as one node, and so does each subpackage."""
    folders = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    for depth in (1, 2):
        graph: dict[str, set[str]] = {}
        for name, found in EDGES.items():
            for other in found:
                pair = [".".join(one.split(".")[:depth]) for one in (name, other)]
                if depth == 2 and pair[0] == pair[1] and pair[0] not in folders:
                    continue
                if pair[0] != pair[1] and "" not in pair:
                    graph.setdefault(pair[0], set()).add(pair[1])
        assert not cycle(graph), depth


INITS = [file for name, file in MODULES.items() if file.name == "__init__.py" and name]
"""All but that of ``hydraft`` itself, which has the names of ``hydraft.api``."""


@pytest.mark.parametrize("file", INITS, ids=lambda f: f.parent.name)
def test_an_init_has_a_docstring_and_nothing_else(file: object) -> None:
    (only,) = ast.parse(file.read_text(encoding="utf-8")).body  # type: ignore[attr-defined]
    assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant) and isinstance(only.value.value, str)


def test_packages_without_torch() -> None:
    violations = [
        f"{file.relative_to(SOURCE)}:{line} imports {other}"
        for name, file in MODULES.items()
        if package(name) in NO_TORCH
        for other, line in external(file)
        if other in TORCH_PACKAGES
    ]
    assert not violations


def test_functions_and_files_are_short() -> None:
    long = [f"{f.where} {f.name}: {f.lines} lines" for f in functions() if f.lines > LIMITS["lines"]]
    wide = [
        f"{f.where} {f.name}: {f.parameters} parameters" for f in functions() if f.parameters > LIMITS["parameters"]
    ]
    lines = {file: file.read_text(encoding="utf-8").count("\n") for file in MODULES.values()}
    files = [f"{file.relative_to(SOURCE)}: {count} lines" for file, count in lines.items() if count > LIMITS["file"]]
    assert not [*long, *wide, *files]


def test_modules_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by their names alone."""
    names = [file.name for file in (SOURCE.parents[1] / "tests").rglob("test_*.py")]
    assert len(names) > 100 and [name for name in names if names.count(name) > 1] == []
