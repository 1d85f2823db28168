"""Interrupted conversions: a kill, Ctrl-C or a full disk; and the memory that a conversion needs."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conftest import run_code
from hydraft.errors import ConfigError
from hydraft.models.convert import convert as conversion
from hydraft.models.convert.convert import convert
from published import CHATGLM2, chatglm2_tensors, contents, interrupt, leftovers, save, sentencepiece_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "published", CHATGLM2, chatglm2_tensors(), sentencepiece_model())


KILLED = """
import os, signal, sys
from pathlib import Path
from hydraft.models.convert import convert, shards
put, written = shards._put, 0
def put_or_die(file, data, digest):
    global written
    written += len(data)
    if written > int(sys.argv[3]):
        file.write(memoryview(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return put(file, data, digest)
shards._put = put_or_die
convert.convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_conversion_resumes_after_its_complete_shards(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "whole")
    target, staging = tmp_path / "native", tmp_path / ".native.converting"
    sizes = [file.stat().st_size for file in sorted((tmp_path / "whole").glob("model-*"))]
    limit = str(sizes[0] + sizes[1] - 1000)  # in the second shard
    assert run_code(KILLED, tmp_path, str(source), str(target), limit).returncode == -9
    assert not target.exists()
    assert len(list(staging.glob("model-*"))) == 1 and len(list(staging.glob(".model-*"))) == 1
    before = next(staging.glob("model-*")).stat()
    (staging / "added_tokens.json").write_text("{}")  # from no conversion: it must not be in the target
    convert(source, target)
    after = (target / "model-00001-of-00003.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert contents(target) == contents(tmp_path / "whole")
    assert leftovers(target) == []


def test_a_damaged_shard_is_written_again(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "native")
    staged = sorted((tmp_path / ".native.converting").glob("model-*.safetensors"))
    assert len(staged) == 3
    with staged[1].open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 8)
    staged[2].unlink()
    convert(source, tmp_path / "native")
    assert contents(tmp_path / "native") == contents(tmp_path / "whole")


def test_a_changed_source_is_converted_again(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "native")
    shutil.rmtree(source)
    save(source, CHATGLM2, chatglm2_tensors(seed=1), sentencepiece_model())
    convert(source, tmp_path / "native")
    made = load_file(tmp_path / "native/model-00003-of-00003.safetensors")
    assert torch.equal(made["lm_head.weight"], chatglm2_tensors(seed=1)["transformer.output_layer.weight"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with space for the tokenizer and two of three shards."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_target_and_a_conversion_resumes_with_more_space(
    source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = small_disk / "native"
    with pytest.raises(ConfigError, match="GiB are free"):  # known before anything is written
        convert(source, target)
    assert list(small_disk.iterdir()) == []
    usage = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**40))  # fills up later
    with pytest.raises(ConfigError, match="the disk is full; complete shards are kept"):
        convert(source, target)
    assert not target.exists()
    kept = sorted(file.name for file in small_disk.glob(".native.converting/*") if "model-" in file.name)
    assert kept == ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"]
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    first = (small_disk / ".native.converting" / kept[0]).stat().st_ino
    convert(source, target)
    assert (target / kept[0]).stat().st_ino == first
    AutoModelForCausalLM.from_pretrained(target)


def test_a_disk_too_full_for_the_tokenizer_gives_the_same_error(
    source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**40))
    (small_disk / "other").write_bytes(b"\0" * (usage.free - 100_000))
    with pytest.raises(ConfigError, match="the disk is full"):
        convert(source, small_disk / "native")
    assert [file.name for file in small_disk.iterdir()] == ["other"]


MEASURED = """
import re, sys
from pathlib import Path
from hydraft.models.convert.convert import convert
def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
convert(Path(sys.argv[1]), Path(sys.argv[1]).with_name("warm"))
Path("/proc/self/clear_refs").write_text("5")  # reset the peak
before = memory("VmRSS")
convert(Path(sys.argv[2]), Path(sys.argv[2]).with_name("large"))
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_memory_is_limited_to_about_one_shard(tmp_path: Path, source: Path, suffix: str) -> None:
    large = {"ffn_hidden_size": 4096, "hidden_size": 512, "num_layers": 16}
    tensors = chatglm2_tensors(**large)
    total = sum(tensor.nbytes for tensor in tensors.values())
    published = save(tmp_path / "big", CHATGLM2 | large, tensors, sentencepiece_model(), suffix, count=8)
    done = run_code(MEASURED, tmp_path, str(source), str(published))
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    print(f"{suffix}: {total / 2**20:.0f} MiB in 8 shards, memory grew by {grown / 2**20:.0f} MiB")
    assert grown < total / 8 * 1.5
