"""Compares a tokenizer with the rows of the embedding, from files, before a model is loaded. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydraft.config.choices import Init, Scale
from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.models import shapes
from hydraft.models.families.registry import published_config, published_family
from hydraft.system import files

PLACEHOLDERS = {"<image_soft_token>"}
"""Tokens that a processor puts in place of an image, and that a text never becomes. google/gemma-3-1b-it, which has no images, has no
row for its own."""

SPECIAL = ("bos_token", "eos_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Keys of tokenizer_config.json; transformers adds a token that the vocabulary does not have. (So does it for unk_token, which a
byte-level vocabulary never needs.)"""


def tokens(folder: Path) -> dict[str, int]:
    """The tokens of a folder's tokenizer with their ids, as far as its JSON files have them; empty for other tokenizers."""
    read = files.read_object(folder / "tokenizer.json")
    model = read.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores
        known = {str(entry[0]): index for index, entry in enumerate(vocabulary)}
    elif isinstance(vocabulary, Mapping):
        known = {str(token): int(index) for token, index in vocabulary.items()}
    else:
        known = {str(token): int(index) for token, index in files.read_object(folder / "vocab.json").items()}
    if not known:
        return {}
    known |= {str(entry["content"]): int(entry["id"]) for entry in read.get("added_tokens") or ()}
    known |= {str(token): int(index) for token, index in files.read_object(folder / "added_tokens.json").items()}
    for token in _more(files.read_object(folder / "tokenizer_config.json")):
        known.setdefault(token, max(known.values()) + 1)
    return known


def _more(config: Mapping[str, Any]) -> list[str]:
    """The tokens that tokenizer_config.json names, in the order of their ids as far as it has any."""
    decoder = config.get("added_tokens_decoder") or {}
    listed = config.get("extra_special_tokens") or ()
    found = [decoder[key] for key in sorted(decoder, key=int)]
    found += list(listed.values() if isinstance(listed, Mapping) else listed)
    found += [config[name] for name in SPECIAL if config.get(name)]
    return [str(entry["content"] if isinstance(entry, Mapping) else entry) for entry in found]


def rows(config: Mapping[str, Any]) -> int | None:
    """The rows of the embedding, by a native config.json; None if it does not say."""
    inner = config.get("text_config")
    found = (inner if isinstance(inner, Mapping) else {}).get("vocab_size") or config.get("vocab_size")
    return found if isinstance(found, int) else None


def check(model: ModelConfig, tokenizer: Path | None = None) -> None:
    """Refuse a local model, or one in the hub's cache, whose tokenizer has more tokens than its embedding has rows.

    Args:
        model: a model section.
        tokenizer: the tokenizer's folder, if it is not the model's.

    Raises:
        ConfigError: the message has both numbers.
    """
    folder = shapes.folder_of(model)
    if folder is None or not (folder / "config.json").is_file():
        return
    if model.init is Init.random and model.scale is Scale.tiny:
        return
    config = published_config(folder)
    if published_family(folder) is None:
        compare(tokens(tokenizer or folder), rows(config), model, tokenizer)


def compare(known: Mapping[str, int], count: int | None, model: ModelConfig, tokenizer: Path | None = None) -> None:
    """Refuse a tokenizer with ids that an embedding of ``count`` rows does not have (None: not known).

    Raises:
        ConfigError: the message has both numbers.
    """
    beyond = {token: index for token, index in known.items() if count is not None and index >= count}
    if not beyond.keys() - PLACEHOLDERS:
        return
    first = min(beyond, key=lambda token: beyond[token])
    whose = "its tokenizer" if tokenizer is None else f"the tokenizer in {tokenizer}"
    raise ConfigError(
        f"model.path={model.path}: {whose} has {max(beyond.values()) + 1} tokens, and its embedding has {count} rows (vocab_size of "
        f"config.json), so {first!r} has none: use the tokenizer that belongs to the model, or a copy of the model whose embedding was "
        "resized (model.resize_token_embeddings of transformers)"
    )
