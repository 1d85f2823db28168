"""Exports a trained model to a folder that does not depend on this project; an incomplete export leaves nothing. No torch.

``merge.py`` makes the weights, ``native_layout.py`` and ``published_layout.py`` write them, ``compare.py`` compares the result with the
trained model, each on the device that ``placement.py`` chooses, ``chat_template.py`` makes the chat template and ``model_card.py`` the
README; ``write.py`` calls them. ``combine.py`` makes one adapter of several before, ``quantise.py`` a quantised model or ``ollama.py`` a
GGUF after, and ``push.py`` uploads the folder.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hydraft.config.choices import ExportKind, Layout
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.export import combine_check, gguf, push, quantise_check
from hydraft.infer.export.published_source import published_source
from hydraft.infer.source import Kind, Source
from hydraft.system import files, wrapping
from hydraft.system.imports import import_large
from hydraft.system.plain_console import PlainConsole


def run(sources: list[Source], options: InferConfig) -> None:
    """Export ``run`` to ``output``.

    Raises:
        ConfigError: it cannot be exported with these settings, the folder exists, or the disk is full.
    """
    source = next(s for s in sources if options.adapter in (None, s.name))
    target = Path(str(options.output)).expanduser()
    if options.export.kind is ExportKind.adapter and source.kind is Kind.model:
        raise ConfigError(f"export.kind=adapter: {source.folder} is a whole model: use export.kind=merged")
    if options.export.layout is Layout.published:
        for each in sources if options.export.combine is not None else [source]:
            published_source(each)
    if options.export.combine is not None:
        combine_check.check(sources, options)
    elif len(sources) > 1 and options.adapter is None:
        wrapping.say(f"notice: {source.name} is exported; adapter=… is another one, export.combine=cat all", sys.stderr)
    if options.export.quant is not None:
        quantise_check.check(sources if options.export.combine is not None else [source], options)
    if options.export.kind is ExportKind.ollama:
        gguf.converter(options.export.llama_cpp)
    push.check(source, options)
    try:
        with _exclusive(target), _source(sources, source, options, target) as exported:
            import_large("hydraft.infer.export.write").write(exported, options, target)  # imports torch
    except OSError as error:
        raise ConfigError(f"output={target}: {error.strerror or error} ({error.filename or target.parent})") from error
    if options.export.push is not None:
        PlainConsole(highlight=False, soft_wrap=True).print(f"uploaded to {push.upload(target, options)}")


@contextmanager
def _source(sources: list[Source], source: Source, options: InferConfig, target: Path) -> Iterator[Source]:
    """What is exported: ``source``, or the combination of all."""
    if options.export.combine is None:
        yield source
        return
    with import_large("hydraft.infer.export.combine").combined(sources, options, target) as combined:
        yield combined


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise ConfigError(f"output={target}: exists; name a folder that does not exist")


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Lock ``target`` against other exports, and remove the files of a killed one."""
    _refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"output={target}: another export is writing it") from None
    try:
        files.clear_staging(target)
        _refuse_existing(target)
        yield
        files.sync_folder(target.parent)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
