"""Converts a published checkpoint to one that transformers loads without remote code: ``hydraft convert SRC DST``.

The weights are converted one tensor at a time, shard by shard. Everything is written to ``.DST.converting`` beside DST, which is
renamed to DST when all files are on the disk; an interrupted conversion resumes after its last complete shard.
"""

import argparse
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from hydraft.errors import ConfigError
from hydraft.models.convert import shards
from hydraft.models.convert.mapping import FORMAT, Output, Plan, make_plan, take
from hydraft.models.families.registry import PUBLISHED
from hydraft.system import program
from hydraft.system.console import Bytes
from hydraft.system.files import sync_folder, write_json
from hydraft.system.plain_console import PlainConsole
from hydraft.system.version import __version__

MANIFEST = "conversion.json"
PROGRESS = "progress.json"
INDEX = "model.safetensors.index.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def convert(source: Path, target: Path, console: Console | None = None) -> dict[str, Any]:
    """Convert ``source`` into the folder ``target``.

    Returns:
        The manifest, which is also in ``target``. A target that is already complete is not changed.

    Raises:
        ConfigError: the source cannot be converted, the target contains something else, or the disk is full. The target is
            then unchanged.
    """
    source, target = source.expanduser(), target.expanduser()
    if not target.name or _is_here(target):
        raise ConfigError(f"{target}: exists already; name a folder that does not exist yet")
    console = console or PlainConsole(stderr=True)
    plan = make_plan(source)
    staging = target.with_name(f".{target.name}.converting")
    try:
        with _exclusive(staging, target):
            return _complete(plan, target) or _convert(plan, staging, target, console)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or staging})"
        if error.errno in FULL:
            reason = "the disk is full; complete shards are kept: free space and run the same command again"
        raise ConfigError(f"{target}: {reason}") from error


def _is_here(target: Path) -> bool:
    """Whether it is the current folder, which could not be replaced under a shell that is in it."""
    try:
        return target.samefile(".")
    except OSError:
        return False


@contextmanager
def _exclusive(staging: Path, target: Path) -> Iterator[None]:
    """Lock ``target`` against other conversions; the kernel releases the lock when its holder dies."""
    staging.mkdir(parents=True, exist_ok=True)
    lock = FileLock(staging.with_name(f"{staging.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{target}: another conversion is writing it") from None
    try:
        staging.mkdir(exist_ok=True)  # a conversion that ended in the meantime removed it
        yield
    finally:
        if not (staging / PROGRESS).exists():  # nothing to resume from
            shutil.rmtree(staging, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _complete(plan: Plan, target: Path) -> dict[str, Any] | None:
    """The manifest of a target that has this conversion; None for an empty or missing target.

    Raises:
        ConfigError: it contains something else, or one of its files has changed.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        source = {entry["name"]: entry for entry in manifest["source"]}
        written = {entry["name"]: entry["bytes"] for entry in manifest["shards"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{target}: contains something else; name a folder that does not exist yet") from None
    if plan.scales_rows and manifest.get("format") != FORMAT:
        raise ConfigError(f"{target}: was converted by an earlier version; remove it and convert again")
    damaged = [name for name, size in written.items() if _size(target / name) != size]
    if damaged:
        raise ConfigError(f"{target}: {damaged[0]} has changed since it was written; remove {target} and convert again")
    if set(source) != set(plan.inputs) or not all(_same(plan.source / name, source[name]) for name in plan.inputs):
        raise ConfigError(f"{target}: was converted from other files than {plan.source}; name another folder")
    return dict(manifest)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _same(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is the one in a manifest; its hash is computed only if its time differs."""
    stat = path.stat()
    if stat.st_size != entry["bytes"]:
        return False
    return bool(stat.st_mtime_ns == entry["modified"]) or _has_hash(path, entry["sha256"])


def _has_hash(path: Path, sha256: str) -> bool:
    return path.is_file() and shards.sha256(path, lambda _: None) == sha256


def _convert(plan: Plan, staging: Path, target: Path, console: Console) -> dict[str, Any]:
    record = _resume(plan, staging)
    sizes = {name: (plan.source / name).stat().st_size for name in plan.inputs}
    left = sum(output.bytes for output in plan.outputs if not (staging / output.name).exists())
    free = shutil.disk_usage(staging).free
    if free < left:
        raise ConfigError(
            f"{target}: {left / 2**30:.1f} GiB are still to be written, but only {free / 2**30:.1f} GiB are free"
        )
    _write_small_files(plan, staging)  # before the shards, so that an unsupported tokenizer is refused at once
    bar = Bytes(console, "converting", sum(sizes.values()) + sum(output.bytes for output in plan.outputs))
    with bar.progress:
        hashes = {name: shards.sha256(plan.source / name, bar.advance) for name in plan.inputs if _small(plan, name)}
        for number, output in enumerate(plan.outputs, 1):
            bar.say(f"shard {number} of {len(plan.outputs)}")
            hashes[output.source] = shards.sha256(plan.source / output.source, bar.advance)
            _write_shard(plan, output, staging, record, hashes[output.source], bar.advance)
        bar.say("flushing to disk")
        manifest = _manifest(plan, record, hashes)
        _finish(plan, staging, target, manifest)
    return manifest


def _small(plan: Plan, name: str) -> bool:
    return name not in {output.source for output in plan.outputs}


def _write_small_files(plan: Plan, staging: Path) -> None:
    """Write config and tokenizer, and assert that the native model has exactly the tensors that will be written."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from hydraft.models.architectures.register import register

    register()
    tensors = {name: tensor for output in plan.outputs for name, tensor in output.layout.items()}
    dtypes = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    config = AutoConfig.for_model(**plan.native, dtype=dtypes[tensors["model.embed_tokens.weight"].dtype])
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config).state_dict()
    assert {name: tuple(value.shape) for name, value in expected.items()} == {n: t.shape for n, t in tensors.items()}
    config.save_pretrained(staging)
    tokenizer = plan.family.tokenizer(plan.source, plan.published)
    ends = {key: plan.native[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if more := tokenizer.init_kwargs.get("answer_ends"):
        ends["eos_token_id"] = [ends["eos_token_id"], *map(tokenizer.convert_tokens_to_ids, more)]
    GenerationConfig(**ends).save_pretrained(staging)
    try:
        tokenizer.save_pretrained(staging)
    except Exception as error:  # the tokenizers library raises a plain Exception for a full disk
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _resume(plan: Plan, staging: Path) -> dict[str, dict[str, Any]]:
    """The record of complete shards; files that are not in it are removed."""
    record: dict[str, dict[str, Any]] = {}
    try:
        saved = json.loads((staging / PROGRESS).read_text(encoding="utf-8"))
        if saved["fingerprint"] == plan.fingerprint:
            record = saved["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    for file in staging.iterdir():
        if file.name != PROGRESS and file.name not in record:
            file.unlink()
    return record


def _write_shard(
    plan: Plan,
    output: Output,
    staging: Path,
    record: dict[str, dict[str, Any]],
    source_hash: str,
    advance: shards.Advance,
) -> None:
    """Write a shard and its entry in the record, unless both exist and the hashes agree."""
    path, entry = staging / output.name, record.get(output.name)
    if entry is not None and entry["source_sha256"] == source_hash and _has_hash(path, entry["sha256"]):
        advance(output.bytes)
        return
    partial = path.with_name(f".{path.name}")
    with shards.opened(plan.source / output.source) as shard:
        tensors = (take(shard.read(name), part) for name, part in output.parts)
        digest = shards.write(partial, output.layout, tensors, advance)
    if shards.header(partial) != output.layout:
        raise ConfigError(f"{path}: does not read back as it was written; is the disk failing?")
    partial.replace(path)
    sync_folder(staging)
    record[output.name] = {"source_sha256": source_hash, "sha256": digest, "bytes": path.stat().st_size}
    write_json(staging / PROGRESS, {"fingerprint": plan.fingerprint, "shards": record})


def _manifest(plan: Plan, record: Mapping[str, Mapping[str, Any]], hashes: Mapping[str, str]) -> dict[str, Any]:
    def source(name: str) -> dict[str, Any]:
        stat = (plan.source / name).stat()
        return {"name": name, "bytes": stat.st_size, "modified": stat.st_mtime_ns, "sha256": hashes[name]}

    return {
        "hydraft": __version__,
        "format": FORMAT,
        "family": plan.family.NAME,
        "architecture": plan.native["architectures"][0],
        "source": [source(name) for name in plan.inputs],
        "shards": [
            {"name": output.name, "from": output.source}
            | {key: record[output.name][key] for key in ("bytes", "sha256")}
            | {"tensors": list(output.layout)}
            for output in plan.outputs
        ],
        "tensors_used": sorted({name for output in plan.outputs for name, _ in output.parts}),
        "tensors_dropped": sorted(plan.dropped),
    }


def _finish(plan: Plan, staging: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    """Write the index and the manifest, flush everything to the disk, and rename the folder."""
    placed = {name: output.name for output in plan.outputs for name in output.layout}
    total = sum(output.bytes for output in plan.outputs)
    write_json(staging / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    write_json(staging / MANIFEST, manifest)
    for file in staging.iterdir():
        sync_folder(file)  # fsync takes files the same way
    (staging / PROGRESS).unlink()
    sync_folder(staging)
    staging.rename(target)  # also replaces an empty folder, and nothing else
    sync_folder(target.parent)


def _models() -> str:
    """The models that can be converted, as a phrase."""
    *most, last = (model for family in PUBLISHED for model in family.MODELS)
    return f"{', '.join(most)} or {last}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, 2 (refused, with a line on stderr) or 130 (interrupted).
    """
    parser = argparse.ArgumentParser(
        prog="hydraft convert",
        description=f"Turn a published checkpoint of {_models()} into one that transformers "
        "loads without remote code, with a fast tokenizer and its chat template.",
        epilog="Needs the size of DST on the disk and the memory of about one shard. An interrupted conversion resumes when it is "
        f"run again. Then train with it: {program.typed('train')} model=auto model.path=DST",
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="the published checkpoint's folder")
    parser.add_argument("target", metavar="DST", type=Path, help="a folder that does not exist yet")
    given = parser.parse_args(arguments)
    try:
        manifest = convert(given.source, given.target)
    except ConfigError as error:
        print(f"convert: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("convert: interrupted; the same command resumes after the last complete shard", file=sys.stderr)
        return 130
    size = sum(shard["bytes"] for shard in manifest["shards"]) / 2**30
    used, dropped = len(manifest["tensors_used"]), len(manifest["tensors_dropped"])
    print(f"{given.target}: {manifest['architecture']}, {size:.2f} GiB, from {used} tensors ({dropped} dropped)")
    return 0
