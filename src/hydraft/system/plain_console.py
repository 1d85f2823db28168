"""A rich console for text of which parts come from outside: paths, names, overrides, errors. No torch."""

from typing import Any

from rich.console import Console

from hydraft.system.wrapping import wrapped


class PlainConsole(Console):
    """Prints text as it is: ``[bold]`` and ``:x:`` in a path are neither markup nor emoji. Styles are given as ``Text``."""

    def __init__(self, **options: Any) -> None:
        """``options``: those of ``Console``."""
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def say(self, text: str, style: str | None = None) -> None:
        """Print lines of text: on a terminal broken between words, elsewhere as they are."""
        line = wrapped(text, self.width) if self.is_terminal else text
        self.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
