"""A rich console for text of which parts come from outside: paths, names, overrides, errors. No torch."""

from typing import Any

from rich.console import Console
from rich.text import Text

from hydraft.system.wrapping import wrapped


class PlainConsole(Console):
    """Prints text as it is: ``[bold]`` and ``:x:`` in a path are neither markup nor emoji. Styles are given as ``Text``."""

    def __init__(self, **options: Any) -> None:
        """``options``: those of ``Console``."""
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """As in rich; a text of any length (``soft_wrap``) is broken between words on a terminal, and left as it is elsewhere."""
        soft = self.soft_wrap if soft_wrap is None else soft_wrap
        if soft and self.is_terminal:
            objects = tuple(map(self._broken, objects))
        super().print(*objects, soft_wrap=soft_wrap, **options)

    def _broken(self, text: Any) -> Any:
        if isinstance(text, str):
            return wrapped(text, self.width)
        return Text(wrapped(text.plain, self.width), style=text.style) if isinstance(text, Text) else text

    def say(self, text: str, style: str | None = None) -> None:
        """Print lines of text."""
        self.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
