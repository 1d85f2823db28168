"""Sees from a file's content what kind of file it is, and opens it. No torch."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydraft.data.reading import json_text, tables
from hydraft.data.reading.json_text import Say
from hydraft.data.reading.json_values import BLANK, Decoder
from hydraft.data.reading.row import Row, is_broken
from hydraft.errors import ConfigError

SAMPLE = 1 << 18
"""Bytes from which the kind is seen."""

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
"""By the first bytes: how a file is compressed."""

JSON, TABLE, TEXT, BINARY = (".json", ".jsonl", ".ndjson", ".jsonlines", ".jl"), tuple(tables.DELIMITERS), (".txt", ".text"), (".parquet", ".arrow", ".feather")  # fmt: skip
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
NOT_READ = (
    ".doc", ".docx", ".xls", ".xlsx", ".xlsm", ".pdf", ".ppt", ".pptx", ".zip", ".tar", ".tgz", ".rar",
    ".7z", ".htm", ".html", ".xml", ".md", ".rst", ".yaml", ".yml", ".toml", ".log", ".dat", ".bin",
    ".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".h5", ".hdf5", ".orc", ".avro", ".db", ".sqlite",
    ".msgpack", ".safetensors", ".png", ".jpg", ".jpeg", ".webp", ".wav", ".mp3", ".mp4",
)  # fmt: skip
"""Suffixes of other kinds: what has one is no data set on the hub."""

SUFFIXES = (*JSON, *TABLE, *TEXT, *BINARY)
"""Suffixes of the kinds that are read, and of compression, which may follow."""

OTHERS = {
    b"PK\x03\x04": "a zip archive (or .xlsx, .docx): unpack it, and save a sheet as CSV and a document as .txt",
    b"%PDF": "a PDF document: save its text as .txt",
    b"\xd0\xcf\x11\xe0": "an Office document: save a sheet as CSV and a document as .txt",
    b"\x89PNG": "an image", b"\xff\xd8\xff": "an image",
    b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array", b"SQLite format 3": "an SQLite database",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with git lfs pull",
    b"<!DOCTYPE": "a web page, not the file itself: download it again", b"<html": "a web page, not the file itself: download it again",
    b"<!doctype": "a web page, not the file itself: download it again",
}  # fmt: skip
"""By the first bytes: kinds of files that are not read."""

BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
"""Byte order marks at the beginning of a file, and the encodings."""

KINDS = "JSON, JSON lines, CSV, TSV, plain text (.txt), Parquet and Arrow are read"


def suffix_of(path: Path) -> str:
    """The suffix in lower case, without that of compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def rows(path: Path, label: str, say: Say) -> Iterator[Row]:
    """The rows of a file.

    Args:
        label: the file, for messages.
        say: is told what was understood that a reader may not expect.

    Raises:
        ConfigError: the file is missing, damaged, or of a kind that is not read.
    """
    packing = None
    try:
        with path.open("rb") as raw:
            magic = raw.read(16)
        packing = next((name for start, name in COMPRESSED.items() if magic.startswith(start)), None)
        if packing == "bzip2" and magic[4:10] != b"1AY&SY":  # text may begin with these letters
            packing = None
        if packing is None and magic.startswith(b"PAR1"):
            yield from tables.parquet_rows(path, label)
        elif packing is None and magic.startswith((b"ARROW1", b"FEA1", b"\xff\xff\xff\xff")):
            yield from tables.arrow_rows(path, label)
        else:
            with _unpacked(path, packing) as file:
                sample = file.read(SAMPLE)
            with _unpacked(path, packing) as file:
                yield from _of_text(file, sample, suffix_of(path), label, say)
    except FileNotFoundError:
        raise ConfigError(f"{label}: no such file") from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise ConfigError(f"{label}: damaged or cut off (as {packing}: {error})") from None
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise ConfigError(f"{label}: cannot be read ({reason})") from None


def _unpacked(path: Path, packing: str | None) -> io.BufferedReader:
    """The content of a file, decompressed as it is read."""
    match packing:
        case None:
            return path.open("rb")
        case "gzip":
            opened: Any = gzip.GzipFile(path)
        case "bzip2":
            opened = bz2.BZ2File(path)
        case "xz":
            opened = lzma.LZMAFile(path)  # noqa: SIM115 (BufferedReader closes it)
        case _:
            import pyarrow

            opened = pyarrow.input_stream(str(path), compression=packing)
    return io.BufferedReader(opened, 1 << 16)


def _of_text(file: io.BufferedReader, sample: bytes, suffix: str, label: str, say: Say) -> Iterator[Row]:
    encoding = _encoding(sample, label)
    wide = encoding.startswith(("utf-16", "utf-32"))
    if wide:
        say(f"{label}: read as {encoding.upper()}")
    text = io.TextIOWrapper(file, encoding, errors="surrogatepass" if wide else "surrogateescape", newline="")
    start = sample.decode(encoding, errors="replace").lstrip(BLANK)
    try:
        if suffix in JSON or not start or _is_json(start, suffix):
            yield from json_text.rows(text, label, say)
        elif suffix in TABLE:
            yield from tables.csv_rows(text, suffix, label)
        elif suffix in TEXT:
            say(
                f"{label}: plain text; each line is a record of which every token is trained (longer texts: JSON lines with a 'text' key)"
            )
            yield from _text_lines(text)
        elif suffix in BINARY:
            raise ConfigError(f"{label}: not {'a Parquet' if suffix == '.parquet' else 'an Arrow'} file, or damaged")
        else:
            raise ConfigError(f"{label}: neither its name nor its content shows what kind of file it is ({KINDS})")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: not {encoding.upper()} text ({error.reason})") from None


def _encoding(sample: bytes, label: str) -> str:
    """How the text is encoded.

    Raises:
        ConfigError: it is no text, or in an encoding that does not say which it is.
    """
    for bom, encoding in BOMS:
        if sample.startswith(bom):
            return encoding
    start = sample.lstrip()
    for magic, kind in OTHERS.items():
        if start.startswith(magic):
            raise ConfigError(f"{label}: {kind} ({KINDS})")
    if sample[257:262] == b"ustar":
        raise ConfigError(f"{label}: a tar archive: unpack it ({KINDS})")
    if sample.startswith((b"PAR1", b"ARROW1")):
        raise ConfigError(f"{label}: a compressed Parquet or Arrow file: unpack it ({KINDS})")
    if b"\x00" in sample:
        for encoding in ("UTF-16LE", "UTF-16BE"):
            if _is_text(sample, encoding):
                raise ConfigError(f"{label}: not UTF-8 text, and looks like {encoding}: {_convert(encoding)}")
        raise ConfigError(f"{label}: a binary file of an unknown kind ({KINDS})")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError as error:
        _check_mostly_utf8(sample, error, label)
    return "utf-8"


def _check_mostly_utf8(sample: bytes, error: UnicodeDecodeError, label: str) -> None:
    """Refuse a file that is in another encoding; in one that is UTF-8, the records with other bytes are bad."""
    lines = [line for line in sample.split(b"\n")[: None if len(sample) < SAMPLE else -1] if not line.isascii()]
    wrong = sum(is_broken(line.decode("utf-8", "surrogateescape")) for line in lines)
    if lines and wrong * 2 < len(lines):
        return
    try:
        codecs.getincrementaldecoder("gb18030")().decode(sample)
    except UnicodeDecodeError:
        raise ConfigError(f"{label}: not UTF-8 text (byte {error.start})") from None
    raise ConfigError(
        f"{label}: not UTF-8 text (byte {error.start}), and looks like GB18030 (GBK): {_convert('GB18030')}"
    )


def _is_text(sample: bytes, encoding: str) -> bool:
    """Whether bytes are text in this encoding, without control characters."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample, final=len(sample) < SAMPLE)
    except UnicodeDecodeError:
        return False
    return not re.search(r"[\x00-\x08\x0e-\x1f]", text)


def _convert(encoding: str) -> str:
    return f"convert it first: iconv -f {encoding} -t UTF-8 FILE > NEW"


def _is_json(start: str, suffix: str) -> bool:
    """Whether text is JSON; in a table or plain text, a bracket may be text."""
    if start[0] not in "[{":
        return False
    if suffix not in (*TABLE, *TEXT):
        return True
    line = start.partition("\n")[0]
    decode = Decoder()
    for text in (line, start):
        try:
            row, _ = decode(text, 0)
        except (ValueError, RecursionError):
            continue
        return isinstance(row.value, dict) or (
            isinstance(row.value, list) and any(isinstance(v, dict) for v in row.value)
        )
    return bool(re.match(r'\[\s*\{\s*"|\{\s*"', start)) and len(start) >= SAMPLE // 4


def _text_lines(file: io.TextIOWrapper) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield Row({"text": text}, number, broken=is_broken(text))
