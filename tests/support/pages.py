"""The code blocks of a page of the documents."""

import re
from dataclasses import dataclass

from conftest import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block."""

    language: str
    """Empty for what a command prints."""
    text: str


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The blocks of ``page`` (``docs/board.md``), or those of a language, in order."""
    found = [Block(*parts) for parts in FENCE.findall((ROOT / page).read_text(encoding="utf-8"))]
    return [block for block in found if language in (None, block.language)]
