"""Files of a run's folder that the agent of another machine sends. No torch."""

from contextlib import suppress
from pathlib import Path

from hydraft.errors import Failure, FailureReason, RankFailed
from hydraft.system import files

ENDING = ".received"
"""Of the names of files that are not whole yet."""


class ReceivedFiles:
    """Writes files that arrive in pieces; each replaces the one of its name once it is whole."""

    def __init__(self, folder: Path) -> None:
        """Remove what an earlier launcher had not received to the end; ``folder`` is the run's."""
        self.root = folder.resolve()
        for left in self.root.rglob(f".*{ENDING}"):
            left.unlink(missing_ok=True)

    def add(self, name: str, piece: bytes, last: bool) -> None:
        """Add a piece.

        Args:
            name: the file's path in the run's folder.
            piece: its next bytes.
            last: whether they are its last.

        Raises:
            RankFailed: the name leads out of the folder, or the file cannot be written.
        """
        target = (self.root / name).resolve()
        if not target.is_relative_to(self.root) or target == self.root:
            self._fail(f"an agent sent a file named {name!r}")
        staging = target.with_name(f".{target.name}{ENDING}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staging.open("ab") as file:
                file.write(piece)
            if last:
                files.sync_folder(staging)  # fsync works on files too
                staging.rename(target)
        except OSError as error:
            with suppress(OSError):
                staging.unlink(missing_ok=True)
            self._fail(f"{target}: {error.strerror}; the file is still in the run's folder on the machine that sent it")

    def _fail(self, message: str) -> None:
        raise RankFailed(Failure(FailureReason.raised, message, log=self.root / "train.log"))
