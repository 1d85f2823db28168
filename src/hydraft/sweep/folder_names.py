"""Names of the folders of a sweep's jobs, such as ``zero=stage2,r=8,lr=1e-4``. No torch.

A name has the overrides in which the jobs differ, each key as short as it stays unique. It is valid on every file system: no
separators, no reserved characters, at most ``LONGEST`` bytes, and no two names that differ only in case.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from hydraft.config.split_text import unquoted
from hydraft.system.redaction import redact_command

LONGEST = 120
"""Bytes of a name; file systems allow 143 (eCryptfs) to 255."""

UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*$]+')
"""Characters that some file system does not allow, and $, which OmegaConf interpolates."""


def differing(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys in which the jobs' overrides differ, in the order of the command; all of them for a single job."""
    values: dict[str, set[str | None]] = {}
    split = [dict(_split(override) for override in job) for job in jobs]
    for job in split:
        for key in job:
            values.setdefault(key, set())
    for key, seen in values.items():
        seen |= {job.get(key) for job in split}
    return [key for key, seen in values.items() if len(seen) > 1 or len(jobs) == 1]


def short(keys: Sequence[str]) -> dict[str, str]:
    """The shortest unique name of each key: ``learning_rate`` is lr, ``lora.r`` is r; longer if two would be equal."""
    chosen: dict[str, str] = {}
    for length in range(4):
        names = {key: _candidates(key)[length] for key in keys if key not in chosen}
        taken = [*chosen.values(), *names.values()]
        chosen |= {key: name for key, name in names.items() if taken.count(name) == 1 or length == 3}
    return {key: chosen[key] for key in keys}


def names(jobs: Sequence[Sequence[str]], keys: Sequence[str] | None = None) -> list[str]:
    """A folder name for each job, from its overrides with ``keys``, by default those that differ."""
    keys = differing(jobs) if keys is None else keys
    shown = short(keys)
    found = [_name({key: value for key, value in map(_split, job) if key in shown}, shown) for job in jobs]
    unique = {tuple(job): name.casefold() for job, name in zip(jobs, found, strict=True)}
    folded = Counter(unique.values())
    return [name if folded[name.casefold()] == 1 else _marked(name, jobs[index]) for index, name in enumerate(found)]


def _split(override: str) -> tuple[str, str | None]:
    """``+lora.r=8`` as ("lora.r", "8"); a quoted value without its quotes."""
    key, _, value = override.partition("=")
    if override.startswith("~"):
        return key.lstrip("~"), None
    text = unquoted(value)
    return key.lstrip("+"), value if text is None else text


def _candidates(key: str) -> tuple[str, str, str, str]:
    """From short to long: initials, last part, last two parts, all."""
    parts = key.replace("/", ".").replace("@", ".").split(".")
    words = parts[-1].split("_")
    initials = "".join(word[0] for word in words if word) if len(words) > 1 else parts[-1]
    return initials or parts[-1], parts[-1], ".".join(parts[-2:]), ".".join(parts)


def _name(values: dict[str, str | None], shown: dict[str, str]) -> str:
    parts = [
        f"no-{shown[key]}" if value is None else f"{shown[key]}={_safe(_public(key, value))}"
        for key, value in values.items()
    ]
    name = ",".join(parts) or "run"
    return name if len(name.encode()) <= LONGEST else _marked(name, [f"{k}={v}" for k, v in values.items()])


def _public(key: str, value: str) -> str:
    """A value without secrets; jobs that differ in one are told apart by a hash of it."""
    text = f"{key}={value}"
    return value if redact_command([text]) == [text] else mark([text])[:8]


def _safe(value: str) -> str:
    """A value for use in a file name: a path by its last part, reserved characters as one dash."""
    value = unicodedata.normalize("NFC", value)
    if re.fullmatch(r"[~.]?/[^\s]*[^\s/]/?|\S+/\S+", value):
        value = value.rstrip("/").rpartition("/")[2]
    return re.sub(r"\s+", " ", UNSAFE.sub("-", value)).strip(" .") or "-"


def _marked(name: str, overrides: Sequence[str]) -> str:
    """``name``, cut if it is too long, with a hash of ``overrides``."""
    hashed = mark(overrides)[:8]
    room = LONGEST - len(hashed) - 1
    return f"{name.encode()[:room].decode(errors='ignore').rstrip(' .')}~{hashed}"


def mark(words: Sequence[str]) -> str:
    """A hash of ``words``."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
