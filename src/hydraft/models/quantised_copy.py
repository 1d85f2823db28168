"""The quantised copy of a model in the cache: made once, in a process of its own, and loaded by every rank and by every later run.

Quantising a model of 70B parameters takes minutes, and reads all of its 16-bit weights; the copy is a quarter as large. It is a folder as
transformers saves a model that bitsandbytes quantised to NF4, and is loaded like any checkpoint that is stored so (``stored_quant.py``). No
torch.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from hydraft.config.choices import Kernels, Precision, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import Config, QuantConfig
from hydraft.config.train import AUTO
from hydraft.errors import ConfigError
from hydraft.models.convert import shards
from hydraft.models.families.registry import published_config
from hydraft.models.prepared import Prepared, folder_for
from hydraft.system import files
from hydraft.system.console import Bytes
from hydraft.system.source_tree import own_code_first

LEAST = 1 << 30
"""Bytes of unquantised weights from which ``model.cache_quantised=auto`` makes a copy: fewer are quantised in a second or two."""

SOURCE = "quantised_from"
"""In config.json of a copy: the model that it was made from, which an adapter records as its base."""

COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Files of a checkpoint that the copy has too, besides config.json."""

PROCESS = """
from hydraft.system.parent_death import die_with_parent
die_with_parent()
import sys
from hydraft.models.quantise import main
sys.exit(main(sys.argv[1:]))
"""
"""The program of the process that makes a copy."""

SAY_SECONDS = 15
"""Seconds between lines about the progress, where there is no bar."""


@dataclass(frozen=True)
class Storage:
    """How a run keeps the weights that it quantises to NF4."""

    double_quant: bool
    precision: Precision
    """The data type of unquantised weights, to which the others are rounded before they are quantised."""


@dataclass(frozen=True)
class Job:
    """What the process that makes a copy gets, as JSON."""

    source: str
    """The folder of the unquantised checkpoint, which transformers can load."""
    named: str
    """What an adapter records as its base: a folder or a hub name."""
    target: str
    double_quant: bool
    precision: str


class NotMadeError(Exception):
    """Why there is no copy."""


def of_run(config: Config) -> Storage | None:
    """The copy that a training run uses; None if it uses none."""
    # Unsloth has its own loader; LoftQ needs the unquantised weights.
    alone = config.kernels.kind is Kernels.unsloth or config.lora.variant.reads_error
    return None if alone else storage(config.model, config.quant, config.train.precision)


def storage(model: ModelConfig, quant: QuantConfig, precision: Precision) -> Storage | None:
    """The copy for a model in this quantisation, computed with in ``precision``; None if there is to be none.

    A model with remote code may need files of which nothing is known here.
    """
    if not model.cache_quantised or quant.kind is not QuantKind.nf4 or model.trust_remote_code:
        return None
    return Storage(quant.double_quant, model.kept_in(precision))


def size(folder: Path) -> int:
    """Bytes of the weights in a folder; 0 if some are missing."""
    if not shards.complete(folder):
        return 0
    return sum((folder / name).stat().st_size for name in shards.files(folder)[0])


def is_wanted(model: ModelConfig, folder: Path) -> bool:
    """Whether to make a copy of the unquantised checkpoint in ``folder``."""
    return size(folder) >= LEAST if model.cache_quantised == AUTO else True


def small_files(folder: Path) -> list[str]:
    """The files of ``folder`` that a copy has too, below it."""
    found = (file for pattern in COPIED for file in folder.glob(pattern))
    return sorted(str(file.relative_to(folder)) for file in found if file.is_file())


def stats(source: Path) -> list[Any]:
    """Name, size and time of each file that a copy of the checkpoint in ``source`` depends on."""
    names = [*shards.files(source)[0], "config.json", *small_files(source)]
    found = [(name, (source / name).stat()) for name in names]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def made_from(config: Mapping[str, Any]) -> str | None:
    """The model that the copy with this config.json was made from; None for any other checkpoint."""
    return config.get(SOURCE)


def is_copy(model: ModelConfig) -> bool:
    """Whether the path of a prepared section is a copy."""
    folder = Path(model.path).expanduser()
    return (folder / "config.json").is_file() and made_from(published_config(folder)) is not None


@dataclass(frozen=True)
class Source:
    """The unquantised checkpoint that a copy is made from."""

    folder: Path
    """Which transformers can load once it exists."""
    named: str
    """See ``Job``."""
    name: str
    """Of the copy, before its hash."""
    identity: Any
    """What tells it from others, as JSON."""


def entry(source: Source, kept: Storage, console: Console) -> Prepared:
    """The entry of the cache for the copy of ``source``."""
    packages = [files.version_of(name) for name in ("bitsandbytes", "transformers")]  # the latter names the tensors
    depends_on = [source.identity, kept.double_quant, kept.precision.value, *packages]

    def make(target: Path) -> None:
        say = f"{source.named}: quantising it to {target}, once"
        console.print(say, highlight=False, markup=False, soft_wrap=True)
        try:
            with files.staged_folder(target) as staging:
                job = Job(str(source.folder), source.named, str(staging), kept.double_quant, kept.precision.value)
                _run(job, console)
        except OSError as error:
            raise NotMadeError(error.strerror or str(error)) from error

    return Prepared(folder_for(f"{source.name}-nf4", depends_on), make)


def is_made(copy: Prepared, model: ModelConfig, console: Console) -> bool:
    """Make the copy if there is none; without room for it a line says so, and the run quantises the model itself."""
    try:
        copy.ensure(console)
    except (NotMadeError, ConfigError) as error:
        why = f"{model.path}: quantised at each start, since no copy was made (model.cache_quantised=false does not try): {error}"
        console.print(why, highlight=False, markup=False, soft_wrap=True)
        return False
    return True


def _run(job: Job, console: Console) -> None:
    """Have another process write the copy: this one does not touch the GPU, and stays small.

    Raises:
        NotMadeError: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": own_code_first()}  # hydraft may not be installed
    with tempfile.TemporaryFile() as log:
        reading, writing = os.pipe()
        command = [sys.executable, "-c", PROCESS, json.dumps(dataclasses.asdict(job)), str(writing)]
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[writing]
        )
        os.close(writing)
        try:
            with os.fdopen(reading, encoding="utf-8") as events:
                error = _follow(events, job, console)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        if error is not None or code != 0:
            raise NotMadeError(error or _ended(code, log))


def _follow(events: IO[str], job: Job, console: Console) -> str | None:
    """Show the progress that the process reports until it ends; returns its error."""
    whole = size(Path(job.source))
    bar, shown, began = Bytes(console, "quantising", whole), 0, time.monotonic()
    said, event, error = began, {}, None
    with bar.progress:
        for line in events:
            with suppress(ValueError):  # a line that a kill has cut off
                event = json.loads(line)
            error = event.get("error", error)
            if "done" not in event:
                continue
            share = min(event["done"] / event["total"], 1.0)  # a tied head may be stored as well
            bar.advance(round(share * whole) - shown)
            shown = round(share * whole)
            if not console.is_terminal and time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                left = (said - began) * (1 - share) / share
                bar.say(f"quantising: {share:.0%}, about {left:,.0f} s left")
    return error


def _ended(code: int, log: IO[bytes]) -> str:
    """Why the process ended without a report."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process that makes it was killed by {name}" + " (out of memory?)" * (name == "SIGKILL")
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"the process that makes it exited with code {code}"
