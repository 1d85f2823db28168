"""What a batch has answered so far, in a file that outlives a kill: a line a bucket, and the output only when all is there.

``g.jsonl.part`` holds the journal while ``g.jsonl`` is being made. Its first line says of what; a line that was cut off is dropped,
and its bucket answered again. No torch.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, TextIO

from hydraft.errors import ConfigError
from hydraft.system import files

Bucket = tuple[int, list[int], list[list[int]]]
"""What is answered at once: its number, the indices of its records, and their prompts as tokens."""
Answers = list[dict[str, Any]]
"""What becomes of a bucket's records: ``index``, ``answer``, ``tokens``, ``finish``."""


class Journal:
    """The buckets of one output file that are done."""

    def __init__(self, output: Path, key: str) -> None:
        """``key``: a hash of all that the answers depend on.

        Raises:
            ConfigError: another command writes this output, or it was begun with something else.
        """
        self.output = output
        self.summary = output.with_suffix(".summary.json")
        self.path = output.with_name(f"{output.name}.part")
        self.done: dict[int, Answers] = {}
        """By the bucket's number."""
        self.finished = False
        """Whether the output stands there, of this very key."""
        self.file: TextIO | None = None
        if output.exists() and not self.path.exists():
            if _key(self.summary) != key:
                raise ConfigError(f"output={output}: is there already, of something else; name another file")
            self.finished = True
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"output={output}: another command is writing it") from None
        self._read(key)

    def _read(self, key: str) -> None:
        assert self.file is not None
        self.file.seek(0)
        kept = 0
        for number, line in enumerate(self.file):
            if not line.endswith("\n"):
                break
            try:
                read = json.loads(line)
            except ValueError:
                break
            if number == 0 and read != {"key": key}:
                raise ConfigError(
                    f"output={self.output}: was begun with another input, model or setting; give those again, remove {self.path}, or "
                    "name another file"
                )
            if number > 0:
                self.done[int(read["bucket"])] = read["answers"]
            kept += len(line.encode())
        os.ftruncate(self.file.fileno(), kept)
        self.file.seek(0, os.SEEK_END)
        if kept == 0:
            self._write({"key": key})

    def add(self, bucket: int, answers: Answers) -> None:
        """A bucket is done; it is on the disk when this returns."""
        self.done[bucket] = answers
        self._write({"bucket": bucket, "answers": answers})

    def _write(self, value: dict[str, Any]) -> None:
        assert self.file is not None
        self.file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self, lines: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Put the output in its place, and what is said about it beside it."""
        assert self.file is not None
        files.write_json(self.summary, summary)
        files.write_text(self.output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self.path.unlink()
        self.file.close()


def _key(summary: Path) -> str | None:
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)
