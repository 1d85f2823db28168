"""The published forms of records, and the tables of them in docs/data.md and docs/zh/data.md.

``python tests/support/record_forms.py en|zh`` prints the table of supervised fine-tuning, and with ``preferences`` that of preference records.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "tests/fixtures/records"
FORMS: list[dict[str, Any]] = yaml.safe_load((RECORDS / "forms.yaml").read_text(encoding="utf-8"))
PREFERENCES: list[dict[str, Any]] = yaml.safe_load((RECORDS / "preference_forms.yaml").read_text(encoding="utf-8"))

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


def preferences(language: str) -> str:
    """The table of preference records in Markdown."""
    form, keys, needs = HEADS[language]
    nothing, comma = WORDS[language][0], WORDS[language][-1]
    lines = [f"| {form} | {keys} | `objective` | {needs} |", "|---|---|---|---|"]
    for each in PREFERENCES:
        listed = comma.join(f"`{key}`" for key in each["record"])
        needed = comma.join(f"`{need}`" for need in each.get("needs", [])) or nothing
        name = each["name"] if language == "en" else each.get("name_zh", each["name"])
        lines.append(f"| {name} | {listed} | `{'dpo' if 'dpo' in each else 'kto'}` | {needed} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print((preferences if "preferences" in sys.argv else table)(sys.argv[1]), end="")
