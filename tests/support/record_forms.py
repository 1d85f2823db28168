"""The published forms of records, and the tables of them in docs/data.md and docs/zh/data.md.

``python tests/support/record_forms.py en|zh`` prints a table.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FORMS: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests/fixtures/records/forms.yaml").read_text(encoding="utf-8"))

PAGES = {"en": ROOT / "docs/data.md", "zh": ROOT / "docs/zh/data.md"}
HEADS = {"en": ("form", "keys", "needs"), "zh": ("数据", "键", "需要")}
WORDS = {"en": ("nothing", "refused", ": ", "; ", ", "), "zh": ("无", "拒绝", "：", "；", "、")}


def table(language: str) -> str:
    """The table in Markdown."""
    nothing, refused, colon, semicolon, comma = WORDS[language]
    suffix = "" if language == "en" else f"_{language}"
    lines = [f"| {' | '.join(HEADS[language])} |", "|---|---|---|"]
    for form in FORMS:
        why = form.get(f"why{suffix}", "")
        needs = comma.join(f"`{each}`" for each in form.get("needs", []))
        if "reads" not in form:
            cell = f"{refused}{colon}{why}"
        else:
            cell = semicolon.join(filter(None, (needs or nothing, why)))
        keys = comma.join(f"`{key}`" for key in form["record"])
        lines.append(f"| {form.get(f'name{suffix}', form['name'])} | {keys} | {cell} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(sys.argv[1]), end="")
