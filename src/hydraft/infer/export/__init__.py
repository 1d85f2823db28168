"""mode=export: what was trained as a folder that needs nothing of this project, whole or not there at all. No torch.

``merge.py`` makes the weights, ``template.py`` the chat template, ``publish.py`` the published layout, ``card.py`` the README.
"""

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hydraft import rundir
from hydraft.choices import ExportKind, Layout
from hydraft.config import ConfigError
from hydraft.infer.config import InferConfig
from hydraft.infer.find import Kind, Source
from hydraft.models import chatglm2
from hydraft.models.families import published_config


def run(sources: list[Source], options: InferConfig) -> None:
    """mode=export.

    Raises:
        ConfigError: this cannot be exported so, the folder is taken, or the disk is full.
    """
    source = next(s for s in sources if options.adapter in (None, s.name))
    target = Path(str(options.output)).expanduser()
    if options.export.kind is ExportKind.adapter and source.kind is Kind.model:
        raise ConfigError(f"export.kind=adapter: {source.folder} is a whole model: use export.kind=merged")
    if options.export.layout is Layout.published:
        published_source(source)
    try:
        with _alone(target):
            importlib.import_module("hydraft.infer.export.write").write(source, options, target)  # torch, only now
    except OSError as error:
        raise ConfigError(f"output={target}: {error.strerror or error} ({error.filename or target.parent})") from error


def published_source(source: Source) -> Path:
    """The published checkpoint that a source's weights came from, whose own files the published layout needs.

    Raises:
        ConfigError: it is not there, or its family has no way back.
    """
    model = source.origin or source.model
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"export.layout=published: needs the published checkpoint in a folder, and {model.path} is none: give base=<it>"
        )
    if not chatglm2.recognises(published_config(folder)):
        raise ConfigError(
            f"export.layout=published: is for ChatGLM2, and {folder} is no published checkpoint of it: leave it away, or give base=<one>"
        )
    return folder


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the only export into ``target``, and clear away what one that was killed has left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"output={target}: another export is writing it") from None
    try:
        if target.exists():
            raise ConfigError(f"output={target}: is there already; name a folder that does not exist yet")
        for left in target.parent.glob(f".{target.name}.*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        yield
        rundir.sync_folder(target.parent)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
