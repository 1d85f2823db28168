"""Characters that a terminal or a log would not show as they are. No torch."""


def escaped(text: str) -> str:
    """``text`` with everything in it that is not printable, line breaks too, as Python's escape sequences: ``\\x1b``."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
