"""The log of a run: ``train.log`` in its folder. No torch."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydraft.runs import run_folder
from hydraft.system import line_file
from hydraft.system.redaction import redact_text


class LogFile(logging.Handler):
    """Appends messages to a file, without secrets. On a full disk they are lost, which ends no run and prints nothing."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        with suppress(OSError):
            line_file.append_text(self.file, redact_text(self.format(record)))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """While the block runs, write the messages of this package to the log of the run in ``folder``."""
    handler = LogFile(folder / "train.log")
    logging.getLogger("hydraft").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("hydraft").removeHandler(handler)
        run_folder.keep_private(folder)  # a recovery may have written the config again
