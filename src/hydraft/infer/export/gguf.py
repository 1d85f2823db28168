"""Converts a merged model to GGUF with llama.cpp's own converter, in another process. No torch."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hydraft.errors import ConfigError, RunFailed
from hydraft.system.source_tree import own_code_first

CONVERTER = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
"""Environment variable: the folder of llama.cpp's source."""

START = (
    "import os, sys\n"
    "from hydraft.system.parent_death import die_with_parent\n"
    "die_with_parent(15)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""Starts a script that ends with this process; prctl(2) holds for the program that is executed."""

SETTLE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from gguf import GGUFReader
reader = GGUFReader(sys.argv[2], "r+")
begins = reader.get_field("tokenizer.ggml.add_bos_token")
kind = reader.get_field("tokenizer.ggml.model")
adds = bool(begins.parts[begins.data[0]][0]) if begins else bytes(kind.parts[kind.data[0]]) == b"llama"
if begins and adds and sys.argv[3] == "no":
    begins.parts[begins.data[0]][0] = adds = False
reader.data.flush()
print(json.dumps({"adds": adds}))
"""
"""Reads from a GGUF whether programs put a beginning-of-sequence token before each prompt, as SentencePiece's do by default, and turns
it off for a chat template without one."""


def converter(typed: str | None) -> Path:
    """llama.cpp's converter: in ``export.llama_cpp``, in ``$LLAMA_CPP``, or on ``PATH``.

    Raises:
        ConfigError: it is not there.
    """
    for name, place in (("export.llama_cpp", typed), (VARIABLE, os.environ.get(VARIABLE))):
        if place:
            found = Path(place).expanduser() / CONVERTER
            if not found.is_file():
                raise ConfigError(f"{name}={place}: no {CONVERTER} in it: name the folder of llama.cpp's source")
            return found.absolute()
    on_path = shutil.which(CONVERTER)
    if on_path is None:
        raise ConfigError(
            f"export.kind=ollama: needs llama.cpp's {CONVERTER}: git clone https://github.com/ggml-org/llama.cpp, and give "
            f"export.llama_cpp=<that folder>"
        )
    return Path(on_path).resolve()


def check(script: Path, folder: Path, log: Path) -> None:
    """Refuse a model whose architecture or tokenizer the converter does not know; ``folder`` has all but its weights.

    Raises:
        ConfigError: the message has the converter's last line, and where the others are.
    """
    made = folder / "vocabulary.gguf"
    if reason := _run(script, [str(folder), "--vocab-only", "--outfile", str(made)], log):
        raise ConfigError(
            f"export.kind=ollama: llama.cpp's converter refuses this model ({reason}; see {log}): use export.kind=merged"
        )


def convert(script: Path, folder: Path, file: Path, outtype: str, name: str, log: Path) -> None:
    """Convert the model in ``folder`` to ``file``.

    Args:
        script: the converter.
        folder: of the merged model.
        file: to write.
        outtype: the data type of its weights, as the converter calls it.
        name: of the model.
        log: for the output of the converter; it stays if that fails.

    Raises:
        RunFailed: the converter failed.
    """
    with tempfile.TemporaryDirectory() as place:
        linked = Path(place) / name  # the converter writes the folder's name into the file
        linked.symlink_to(folder.absolute())
        reason = _run(script, [str(linked), "--outfile", str(file), "--outtype", outtype, "--model-name", name], log)
    if reason:
        raise RunFailed(f"llama.cpp's converter failed, and nothing was kept: {reason}; see {log}")


def settle_begin(script: Path, file: Path, in_template: bool) -> bool:
    """Whether programs put the beginning-of-sequence token before a prompt; after this, only if the chat template begins with it.

    Raises:
        RunFailed: the file is not as llama.cpp writes it.
    """
    done = subprocess.run(
        [sys.executable, "-c", SETTLE, str(script.parent / "gguf-py"), str(file), "yes" if in_template else "no"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RunFailed(f"{file.name}: cannot be read: {_last(done.stderr)}")
    adds = bool(json.loads(done.stdout.splitlines()[-1])["adds"])
    if adds and not in_template:
        raise RunFailed(f"{file.name}: would begin prompts with a token that the chat template does not have")
    return adds


def _run(script: Path, arguments: list[str], log: Path) -> str | None:
    """Run the converter; its last line if it fails, and its output is then in ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-c", START, str(script), *arguments],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
            env={**os.environ, "PYTHONPATH": own_code_first()},
        )  # fmt: skip
    if done.returncode == 0:
        log.unlink()
        return None
    return _last(log.read_text(encoding="utf-8", errors="replace")) or f"exit code {done.returncode}"


def _last(output: str) -> str:
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")
