"""mode=export: what was trained as a folder that needs nothing of this project, whole or not there at all. No torch.

``merge.py`` makes the weights, ``template.py`` the chat template, ``publish.py`` the published layout, ``card.py`` the README.
"""

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hydraft.config.choices import ExportKind, Layout
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.export.published_source import published_source
from hydraft.infer.source import Kind, Source
from hydraft.system import files


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
        files.sync_folder(target.parent)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
