"""Files that only their owner may read: they hold a secret, or a command that may. No torch."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, which nobody else can read at any time, whatever the umask is and whoever made the file before."""

    def private(name: str, flags: int) -> int:
        return os.open(name, flags & ~os.O_TRUNC, 0o600)

    with open(path, "w", encoding="utf-8", opener=private) as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(0)
        file.write(text)
