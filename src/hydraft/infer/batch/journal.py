"""The journal of a batch: one line per finished bucket, so that a killed command can be resumed. No torch.

``g.jsonl.part`` is the journal while ``g.jsonl`` is being made, which is written at the end. Its first line has the key of the
command; an incomplete last line is dropped, and its bucket is generated again.
"""

import fcntl
import json
from pathlib import Path
from typing import Any, BinaryIO

from hydraft.errors import ConfigError
from hydraft.system import files, line_file

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
        self.dropped = 0
        """Lines that had been cut off in writing; their buckets are generated again."""
        self.file: BinaryIO | None = None
        if output.exists() and not self.path.exists():
            if _key(self.summary) != key:
                raise ConfigError(
                    f"output={output}: exists, and is from another input, model or setting; name another file"
                )
            self.finished = True
            return
        if self.summary.exists() and _key(self.summary) is None:
            raise ConfigError(f"output={output}: {self.summary} exists, and is not of a batch; name another file")
        output.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"output={output}: another command is writing it") from None
        self._read({"key": key})

    def _read(self, head: dict[str, str]) -> None:
        assert self.file is not None
        first, *rest = self.path.read_bytes().split(b"\n", 1)
        known = json.dumps(head).encode()
        if first == known:
            self.dropped = self._take(rest[0] if rest else b"")
        elif rest or not known.startswith(first):  # else nothing, or a beginning of this line
            known_one = line_file.parse(first).values
            other = "was started with another input, model or setting; use those, remove"
            foreign = "is not the journal of a batch; move"
            raise ConfigError(
                f"output={self.output}: {self.path} {other if known_one and list(known_one[0]) == ['key'] else foreign} it, or "
                "name another file"
            )
        else:
            self._write(head)

    def _take(self, data: bytes) -> int:
        """Take over the finished buckets; returns the number of lines that are damaged, and dropped."""
        lines = line_file.parse(data)
        for line in lines.values:
            if isinstance(line.get("bucket"), int) and isinstance(line.get("answers"), list):
                self.done[line["bucket"]] = line["answers"]
        return lines.damaged

    def add(self, bucket: int, answers: Answers) -> None:
        """Record a finished bucket; it is on the disk when this returns."""
        self._write({"bucket": bucket, "answers": answers})
        self.done[bucket] = answers

    def _write(self, value: dict[str, Any]) -> None:
        assert self.file is not None
        line_file.append_to(self.file.fileno(), self.path, value, sync=True)

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
