"""The folder of a model that transformers can load: converted or filled with random weights on first use. No torch at module level.

It is made in the cache, under a name that hashes everything it depends on, and appears there only when it is complete
(``prepared.py``).
"""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hydraft.config.choices import Hub, Init, Scale
from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.models import hugging_face_hub, modelscope_hub, quantised_copy, shapes, stored_quant, vocabulary
from hydraft.models.convert import shards
from hydraft.models.families.registry import published_config, published_family
from hydraft.models.prepared import Prepared, folder_for
from hydraft.models.quantised_copy import Storage
from hydraft.system import cache_entries, files
from hydraft.system.plain_console import PlainConsole
from hydraft.system.source_tree import TINY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check(model: ModelConfig) -> None:
    """Refuse a local model that is missing, incomplete, or cannot be converted; of a hub model, only what is in the hub's cache is checked.

    Raises:
        ConfigError: the message has the setting.
    """
    check_code(model)
    folder = Path(model.path).expanduser()
    if folder.exists() and not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={model.path}: not a model folder (no config.json in it)")
    shapes.check_size(model)
    shapes.planned_config(model)  # refuses model.rope
    vocabulary.check(model)
    if model.init is Init.random:
        if not folder.exists() and model.shape is None:
            raise ConfigError(
                f"model.init=random: the shape of {model.path} is unknown: name a folder with a config.json in it, "
                "or a model with sizes, such as model=qwen"
            )
        return
    if not folder.exists():
        if model.path.startswith((".", "/", "~")) or model.path.count("/") != 1:
            raise ConfigError(f"model.path={model.path}: no such folder")
        stored_quant.refuse(model)
        vocabulary.check(model)
        return
    kinds = {file.suffix: file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")}
    if not kinds:
        raise ConfigError(
            f"model.path={model.path}: no weights in it (*.safetensors); model.init=random starts without any"
        )
    if ".safetensors" not in kinds and published_family(folder) is None:  # conversions read pickles with weights_only
        raise ConfigError(
            f"model.path={model.path}: {kinds['.bin']} is a pickle, which may contain code, and is not opened; convert the weights to .safetensors"
        )
    stored_quant.refuse(model)


def check_code(model: ModelConfig, setting: str = "model.revision") -> None:
    """Refuse remote code that may change after it was trusted.

    Raises:
        ConfigError: the message has ``setting``, which pins the revision of a hub model.
    """
    if not model.trust_remote_code:
        return
    folder = Path(model.path).expanduser()
    if not folder.is_dir() and model.hub is Hub.modelscope:
        raise ConfigError(
            f"trust_remote_code=true: a revision on ModelScope is a branch or a tag, and the code of {model.path} may change there: "
            "download it to a folder and give that as model.path"
        )
    if not folder.is_dir():
        if not re.fullmatch(r"[0-9a-f]{40}", model.revision or ""):
            raise ConfigError(
                f"trust_remote_code=true: the code of {model.path} may change on the hub; pin it: {setting}=<a commit's 40 hex digits>"
            )
        return
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if file.is_file() and (elsewhere := re.search(r'"([^"\s]+/[^"\s]+)--', file.read_text(encoding="utf-8"))):
            raise ConfigError(
                f"trust_remote_code=true: {file} takes its code from {elsewhere[1]} on the hub, where it may change: copy the code to the folder"
            )


def native(
    model: ModelConfig,
    seed: int,
    console: Console | None = None,
    verified: bool = False,
    storage: Storage | None = None,
) -> ModelConfig:
    """The section with a ``path`` (folder or hub name) that transformers loads without a conversion.

    Files in the hub's cache are used; only missing ones are downloaded. A folder that was made earlier is verified, and made again if it is
    damaged. Progress is shown on ``console``.

    Args:
        verified: another process of this run has verified the folder, which is used as it is. A quantised copy that it has not made is not
            made.
        storage: what the quantised copy that takes the place of the checkpoint is like; None: the unquantised weights are needed.

    Raises:
        ConfigError: the checkpoint is not available or cannot be converted, or the disk is full.
    """
    console = console or PlainConsole(stderr=True)
    model, entry = _entry(model, seed, console)
    source = None if storage is None else _source(model, entry, console, verified)
    copy = None if source is None or storage is None else quantised_copy.entry(source, storage, console)
    if copy is not None and cache_entries.exists(copy.folder) and not verified:
        copy.remove_if_damaged(console)
    if copy is not None and copy.folder.is_dir():
        return _at(model, copy)
    if entry is None and not verified:
        _check_weights(model)
    if entry is not None and not (verified and entry.folder.is_dir()):
        entry.ensure(console)
    if source is not None and copy is not None and not verified and quantised_copy.is_wanted(model, source.folder):
        entry = copy if quantised_copy.is_made(copy, model, console) else entry
    return model if entry is None else _at(model, entry)


def _at(model: ModelConfig, entry: Prepared) -> ModelConfig:
    return dataclasses.replace(model, path=str(entry.folder), init=Init.pretrained, revision=None)


def _source(
    model: ModelConfig, entry: Prepared | None, console: Console, verified: bool
) -> quantised_copy.Source | None:
    """The checkpoint that a quantised copy would be made from; None if there is to be none.

    Its weights are downloaded unless they are ``verified``, that is, another process has done that.
    """
    if entry is not None:
        return quantised_copy.Source(entry.folder, str(entry.folder), entry.folder.name, entry.folder.name)
    if stored_quant.stored(model) is not None:
        return None
    folder = Path(model.path).expanduser().absolute()
    local = folder.is_dir()
    found = folder if local else shapes.hub_snapshot(model) if verified else hugging_face_hub.whole(model, console)
    if found is None or not shards.complete(found) or not shards.files(found)[0][0].endswith(".safetensors"):
        return None
    named = str(folder) if local else model.path
    return quantised_copy.Source(found, named, Path(named).name, [named, *quantised_copy.stats(found)])


def _entry(model: ModelConfig, seed: int, console: Console) -> tuple[ModelConfig, Prepared | None]:
    """The section, with the folder of a download, and the entry of the cache that stands for its checkpoint, if there is one."""
    if model.init is Init.random:
        return model, _random(model, seed, console)
    model = _from_modelscope(model, console, weights=True)
    source = _published(model, console)
    return model, _dequantised(model, console) if source is None else _converted(source, console)


def tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer of the prepared model, without preparing the model."""
    from hydraft.models.load import load_tokenizer

    if model.init is Init.random:
        return load_tokenizer(dataclasses.replace(model, path=str(_tokenizer_folder(model))))
    model = _from_modelscope(model, PlainConsole(stderr=True), weights=False)
    source = _published(model, PlainConsole(stderr=True))
    if source is None:
        return load_tokenizer(model)
    config = published_config(source)
    family = published_family(source)
    assert family is not None
    return family.tokenizer(source, config)


def _check_weights(model: ModelConfig) -> None:
    """Refuse a checkpoint with a file that is cut off; a hub's is checked if it is in the hub's cache."""
    folder: Path | None = Path(model.path).expanduser()
    if folder is not None and not folder.is_dir():
        folder = shapes.hub_snapshot(model)
    if folder is None or not shards.complete(folder):
        return  # transformers reports it
    try:
        shards.check_sizes(folder)
    except ConfigError as error:
        raise ConfigError(f"model.path={model.path}: {error}: download or copy the file again") from None


def _from_modelscope(model: ModelConfig, console: Console, weights: bool) -> ModelConfig:
    """The section with the folder of a checkpoint of ModelScope; any other section as it is."""
    if not modelscope_hub.needed(model):
        return model
    found = modelscope_hub.local(model, console, weights)
    try:
        check(found) if weights else shapes.check_size(found)
    except ConfigError as error:  # the name is what the person typed
        raise ConfigError(str(error).replace(found.path, model.path)) from None
    return found


def _published(model: ModelConfig, console: Console) -> Path | None:
    """The folder of a published checkpoint that has to be converted; None for one that transformers loads."""
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        return folder if published_family(folder) else None
    config = hugging_face_hub.config(model)
    if config is None or published_family(config.parent) is None:
        return None  # any other problem with the name is reported by transformers
    if not _is_complete(config.parent):
        hugging_face_hub.download(model, console)
    shapes.check_size(model, config.parent)
    return config.parent


def _dequantised(model: ModelConfig, console: Console) -> Prepared | None:
    """The dequantised copy of a checkpoint that is stored in 8 or 4 bits; None for one that is used as it is."""
    stored_quant.refuse(model)
    found = stored_quant.stored(model)
    if found is None or not found.dequantised:
        return None
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        cached = shapes.hub_snapshot(model)
        folder = cached if cached is not None and shards.complete(cached) else hugging_face_hub.download(model, console)

    def make(target: Path) -> None:
        from hydraft.models.dequantized import dequantise

        console.print(f"{model.path}: dequantising it to {target}, once", highlight=False, soft_wrap=True)
        with files.staged_folder(target) as staging:
            dequantise(folder, staging, console)

    return Prepared(
        folder_for(f"{folder.resolve().name}-{found.method}", [str(folder.resolve()), _stats(folder)]), make
    )


def _is_complete(snapshot: Path) -> bool:
    return shards.complete(snapshot) and (snapshot / "tokenizer.model").is_file()


def _converted(source: Path, console: Console) -> Prepared:
    """The folder of the converted ``source``."""
    from hydraft.models.convert.mapping import FORMAT

    family = published_family(source)
    assert family is not None
    # A ChatGLM3 without its tokenizer's code is taken for a ChatGLM2, and converted again when it has it.
    another = [family.NAME] if family.NAME not in ("chatglm2", "baichuan") else []
    rules = family.rules(published_config(source)).values()
    if any(part.unit_rows for rule in rules for part in rule.parts):
        another.append(str(FORMAT))

    def make(target: Path) -> None:
        from hydraft.models.convert.convert import convert

        console.print(f"{source}: converting it to {target}, once", highlight=False, soft_wrap=True)
        convert(source, target, console)

    return Prepared(folder_for(source.resolve().name, [str(source.resolve()), _stats(source), *another]), make)


def _stats(source: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a checkpoint's files: whether a copy made from them is still valid."""
    names = [*shards.files(source)[0], "config.json", "tokenizer.model"]
    return [(name, file.stat().st_size, file.stat().st_mtime_ns) for name in names if (file := source / name).is_file()]


def _tokenizer_folder(model: ModelConfig) -> Path:
    """The tokenizer for random weights: that of the folder with their config, else the embedded model's."""
    folder = Path(model.path).expanduser()
    return folder if folder.is_dir() and published_family(folder) is None else TINY


def _random(model: ModelConfig, seed: int, console: Console) -> Prepared:
    """The folder of random weights of this model's shape."""
    shape = shapes.local_config(model)
    if shape is None:
        assert model.shape is not None  # see check
        shape = shapes.native_config(model.shape)
    tokenizer_folder = _tokenizer_folder(model)
    tiny = model.scale is Scale.tiny

    def make(target: Path) -> None:
        from hydraft.models.random_weights import write

        with files.staged_folder(target) as staging:
            write(shape, tokenizer_folder, tiny, seed, staging, console)

    return Prepared(folder_for(f"random-{model.name}", [shape, tiny, seed, str(tokenizer_folder)]), make)
