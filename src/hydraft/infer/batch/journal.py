"""The journal of a batch: one line per finished bucket, so that a killed command can be resumed. No torch.

``g.jsonl.part`` is the journal while ``g.jsonl`` is being made, which is written at the end. Its first line has the key of the
command; an incomplete last line is dropped, and its bucket is generated again.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, TextIO

from hydraft.errors import ConfigError
from hydraft.system import files

Bucket = tuple[int, list[int], list[list[int]]]
"""A batch of prompts: its number, the indices of its records, and their prompts as tokens."""
Answers = list[dict[str, Any]]
"""The answers to a bucket's records: ``index``, ``answer``, ``tokens``, ``finish``, and ``reasoning_content`` if it has thoughts."""


class Journal:
    """The finished buckets of one output file."""

    def __init__(self, output: Path, key: str) -> None:
        """``key``: a hash of everything that the answers depend on.

        Raises:
            ConfigError: another command writes this output, or it was started with another key.
        """
        self.output = output
        self.summary = output.with_suffix(".summary.json")
        self.path = output.with_name(f"{output.name}.part")
        self.done: dict[int, Answers] = {}
        """The answers by bucket number."""
        self.finished = False
        """Whether the complete output of this key exists."""
        self.file: TextIO | None = None
        if output.exists() and not self.path.exists():
            if _key(self.summary) != key:
                raise ConfigError(
                    f"output={output}: exists, and is from another input, model or setting; name another file"
                )
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
                    f"output={self.output}: was started with another input, model or setting; use those, remove {self.path}, or "
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
        """Record a finished bucket; it is on the disk when this returns."""
        self.done[bucket] = answers
        self._write({"bucket": bucket, "answers": answers})

    def discard(self) -> None:
        """Remove the journal if no bucket is finished: nothing is lost, and another input may follow under the same name."""
        if self.file is not None and not self.done:
            self.path.unlink(missing_ok=True)
            self.file.close()

    def _write(self, value: dict[str, Any]) -> None:
        assert self.file is not None
        self.file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self, lines: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Write the output and its summary, and remove the journal."""
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
