"""A tokenizer with more tokens than the embedding has rows is refused from files, with the numbers that transformers counts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.models import prepare, vocabulary
from hydraft.models.load import check_vocabulary, load_tokenizer
from hydraft.system.source_tree import TINY

Edit = Callable[[dict[str, Any], Path], None]


def _tokenizer_json(edit: Callable[[dict[str, Any]], None]) -> Edit:
    def edited(_: dict[str, Any], folder: Path) -> None:
        read = json.loads((folder / "tokenizer.json").read_text())
        edit(read)
        (folder / "tokenizer.json").write_text(json.dumps(read))

    return edited


def _token(index: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, "special": True, **flags}


EDITS: dict[str, Edit] = {
    "added in tokenizer.json": _tokenizer_json(lambda read: read["added_tokens"].append(_token(3072, "<a>"))),
    "two of them": _tokenizer_json(
        lambda read: read["added_tokens"].extend([_token(3072, "<a>"), _token(3073, "<b>")])
    ),
    "a padding token": lambda config, _: config.update(pad_token="<pad>"),
    "more special tokens": lambda config, _: config.update(extra_special_tokens=["<|im_start|>", "<a>", "<b>"]),
    "added_tokens.json": lambda _, folder: (folder / "added_tokens.json").write_text('{"<a>": 3072}') and None,
    "added_tokens_decoder": lambda config, _: config.update(added_tokens_decoder={"3072": _token(3072, "<a>")}),
}


def model_with(folder: Path, edit: Edit | None = None, **config: Any) -> ModelConfig:
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    if edit is not None:
        edit(settings, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    own = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(own | config))
    return ModelConfig(name="mine", path=str(folder))


@pytest.mark.parametrize("edit", EDITS)
def test_added_tokens_count(edit: str, tmp_path: Path) -> None:
    model = model_with(tmp_path, EDITS[edit])
    count = max(AutoTokenizer.from_pretrained(tmp_path).get_vocab().values()) + 1
    assert max(vocabulary.tokens(tmp_path).values()) + 1 == count > 3072
    with pytest.raises(ConfigError, match=rf"{count} tokens, and its embedding has 3072 rows .*'<") as early:
        prepare.check(model)
    with pytest.raises(ConfigError) as late:  # in a rank, whatever files the tokenizer has
        check_vocabulary(load_tokenizer(model), model)
    assert str(early.value) == str(late.value)
    prepare.check(model_with(tmp_path, vocab_size=count))  # an embedding that was resized


def test_an_id_beyond_the_rows_is_refused_however_few_tokens_there_are(tmp_path: Path) -> None:
    model = model_with(tmp_path, _tokenizer_json(lambda read: read["model"]["vocab"].update({"zzz": 9000})))
    with pytest.raises(ConfigError, match=r"9001 tokens, and its embedding has 3072 rows"):
        prepare.check(model)


@pytest.mark.parametrize("vocab_size", [3072, 3200])
def test_rows_to_spare_are_no_fault(vocab_size: int, tmp_path: Path) -> None:
    model = model_with(tmp_path, vocab_size=vocab_size)
    prepare.check(model)
    check_vocabulary(load_tokenizer(model), model)


def test_the_language_models_rows_count_in_a_model_of_several_parts(tmp_path: Path) -> None:
    assert vocabulary.rows({"vocab_size": 1, "text_config": {"vocab_size": 7}}) == 7
    assert vocabulary.rows({"text_config": {}}) is None


def test_a_placeholder_for_images_needs_no_row(tmp_path: Path) -> None:
    prepare.check(model_with(tmp_path, _placeholder))


_placeholder = _tokenizer_json(lambda read: read["added_tokens"].append(_token(3072, "<image_soft_token>")))
