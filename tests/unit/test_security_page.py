"""docs/security.md names a test for each promise: all of them exist, and both languages name the same."""

import ast
import re

from hydraft.system.source_tree import ROOT

NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PAGES = ("docs/security.md", "docs/zh/security.md")


def functions(file: str) -> set[str]:
    """The names of a file's functions, methods included."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_exists() -> None:
    english, chinese = (NAMED.findall((ROOT / page).read_text(encoding="utf-8")) for page in PAGES)
    assert english == chinese
    assert len(english) > 50
    missing = [f"{file}::{name}" for file, name in dict.fromkeys(english) if name not in functions(file)]
    assert not missing


def test_every_row_of_the_tables_names_a_test() -> None:
    for page in PAGES:
        tables = (ROOT / page).read_text(encoding="utf-8").split("\n### ")[1:]
        rows = [row for table in tables for row in re.findall(r"^\|.*\|$", table, flags=re.MULTILINE)[2:]]
        assert not [row for row in rows if not re.search(r"`tests/[\w/]+\.py", row)]


def test_every_attack_is_on_the_page() -> None:
    named = {file for file, _ in NAMED.findall((ROOT / PAGES[0]).read_text(encoding="utf-8"))}
    attacks = {str(file.relative_to(ROOT)) for file in (ROOT / "tests/integration/attacks").glob("test_*.py")}
    assert attacks <= named
