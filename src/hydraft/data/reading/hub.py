"""Reads data sets of the hub, and what ``save_to_disk`` has written, through ``datasets``. No torch at module level."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydraft.data.reading.json_text import Say
from hydraft.data.reading.row import Row, without_nulls
from hydraft.errors import ConfigError


class DataSet:
    """A data set that ``datasets`` keeps on disk, read row by row; it is opened once."""

    def __init__(self, source: str, name: str) -> None:
        """``name``: the setting with its value, for messages."""
        self.source = source
        self.name = name
        self._opened: Any = None

    def __call__(self, say: Say) -> Iterator[Row]:
        """The rows.

        Raises:
            ConfigError: it is not available, damaged, or has no such configuration or split.
        """
        if self._opened is None:
            self._opened = self.open(say)
        for columns in self._opened:
            yield Row(without_nulls(columns))

    def open(self, say: Say) -> Any:
        """A data set on the hub: ``owner/name``, ``owner/name:split`` or ``owner/name:config:split``."""
        import datasets

        owner, config, split = parsed(self.source)
        named = [owner, config] if config else [owner]
        try:
            return datasets.load_dataset(*named, split=split or "train")
        except Exception as error:  # the hub's client raises many types
            others = _listed(error, "Unknown split")
            if others is None:
                raise ConfigError(_why(error, owner, self.name)) from error
        other = _other_split(split, others, f"{':'.join(named)}:", self.name, say)
        return datasets.load_dataset(*named, split=other)


class SavedDataSet(DataSet):
    """What ``save_to_disk`` wrote; of several data sets, the split that the name of the folder is followed by."""

    def __init__(self, folder: Path, split: str, name: str) -> None:
        super().__init__(str(folder), name)
        self.split = split

    def open(self, say: Say) -> Any:
        """The data set in the folder."""
        import datasets

        try:
            found: Any = datasets.load_from_disk(self.source)
        except Exception as error:  # a damaged folder raises many types
            raise ConfigError(f"{self.name}: not what save_to_disk wrote, or damaged ({_first_line(error)})") from error
        if isinstance(found, datasets.DatasetDict):
            wanted = self.split or "train"
            if wanted not in found:
                wanted = _other_split(self.split, list(found), f"{self.source}:", self.name, say)
            return found[wanted]
        if self.split and str(found.split or "") != self.split:
            raise ConfigError(f"{self.name}: holds one data set without splits; leave out :{self.split}")
        return found


def parsed(source: str) -> tuple[str, str, str]:
    """The name, the configuration and the split in the name of a data set; empty if they are not given."""
    owner, *rest = re.split(r":(?![^\[]*\])", source, maxsplit=2)  # a split may be train[:100]
    return owner, rest[0] if len(rest) == 2 else "", rest[-1] if rest else ""


def _other_split(split: str, others: list[str], prefix: str, name: str, say: Say) -> str:
    """The only split, if none was named and it is not called ``train``."""
    if not split and len(others) == 1:
        say(f"{name}: its only split, {others[0]}, is read")
        return others[0]
    raise ConfigError(
        f"{name}: has no split {split or 'train'} (its splits: {', '.join(others)}); give {prefix}{others[0]}"
    )


def _listed(error: Exception, message: str) -> list[str] | None:
    """The names that an error message lists, if it begins like this."""
    if not str(error).startswith(message):
        return None
    _, _, listed = str(error).partition("[")
    return re.findall(r"'([^']+)'", listed.partition("]")[0])


def _why(error: Exception, owner: str, name: str) -> str:
    """What an error of the hub's client means, on one line."""
    configs = _listed(error, "Config name is missing") or _listed(error, "BuilderConfig")
    if configs:
        return f"{name}: has the configurations {', '.join(configs)}; give one, such as {owner}:{configs[0]}:train"
    return f"{name}: no such file, and not available on the hub ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
