"""A converted ChatGLM3: the published tensors and rotary positions, role tokens, chats as its training encodes them, and tools."""

import ast
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from test_chatglm2 import batch, reference, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from conftest import config_of
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import encode_one
from hydraft.errors import ConfigError
from hydraft.infer.serve.detokenize import StreamDecoder
from hydraft.models import prepare
from hydraft.models.convert.convert import convert
from hydraft.models.families.registry import published_family
from hydraft.models.generation import read_answer
from published import CHATGLM2, CHATGLM3, chatglm2_tensors, fuzz, save, sentencepiece_model

ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
CODE = 'special_tokens = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]'
TOOLS = [{"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatglm3")
    source = save(folder / "published", CHATGLM3, chatglm2_tensors(), sentencepiece_model())
    (source / "tokenization_chatglm.py").write_text(CODE)
    assert convert(source, folder / "native")["family"] == "chatglm3"
    return folder / "native"


@pytest.fixture(scope="module")
def tokenizer(converted: Path) -> Any:
    return AutoTokenizer.from_pretrained(converted)


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())


def test_logits_equal_those_of_the_published_architecture(converted: Path) -> None:
    """``rope_ratio`` multiplies the base of the rotary positions (RotaryEmbedding of modeling_chatglm.py)."""
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    ids, mask = batch(padded=True)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
        expected, unscaled = (reference(weights(), ids, mask, base) for base in (500000.0, 10000.0))
    kept = mask.bool()
    assert (expected - found)[kept].abs().max() <= 5e-5
    assert (expected - unscaled)[kept].abs().max() > 0.1


def test_tokens_of_the_roles_have_their_published_ids(tokenizer: Any, pieces: Any, converted: Path) -> None:
    size = pieces.get_piece_size()
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *ROLES]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(size, size + 9))
    ends = GenerationConfig.from_pretrained(converted).eos_token_id
    assert ends == [2, size + 6, size + 8]  # </s>, <|user|>, <|observation|>: the ends of chat() in modeling_chatglm.py


def single(pieces: Any, role: str, metadata: str, text: str) -> list[int]:
    """``build_single_message`` of tokenization_chatglm.py."""
    token = pieces.get_piece_size() + 5 + ROLES.index(f"<|{role}|>")
    return [token, *pieces.encode(f"{metadata}\n"), *pieces.encode(text)]


def published_chat(pieces: Any, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Ids and labels of ``process_batch`` in finetune_demo/finetune_hf.py."""
    size = pieces.get_piece_size()
    ids, masks = [size + 1, size + 3], [False, False]
    for role, text in turns:
        new = single(pieces, role, "", text)
        ids += new
        masks += [role == "assistant"] * len(new)
    ids.append(2)
    labels = [token if mask else -100 for token, mask in zip(ids, [False, *masks], strict=True)]
    return ids, labels


def chats(count: int) -> list[list[tuple[str, str]]]:
    generator = random.Random(3)
    texts = [text for text in fuzz(800, seed=11) if text]
    made = []
    for _ in range(count):
        turns = [("system", generator.choice(texts))] if generator.random() < 0.3 else []
        for _ in range(generator.randint(1, 3)):
            turns += [("user", generator.choice(texts)), ("assistant", generator.choice(texts))]
        made.append(turns)
    return made


def test_chats_are_encoded_and_trained_as_published(tokenizer: Any, pieces: Any) -> None:
    data = config_of("data.template=chat").data
    for turns in chats(60):
        chat = Conversation(tuple(Turn(role, text) for role, text in turns))
        (example,) = encode_one(chat, tokenizer, data)
        ids, labels = published_chat(pieces, turns)
        assert example["input_ids"] == ids
        assert example["labels"] == labels


def test_the_prompt_of_an_answer_is_the_published_one(tokenizer: Any, pieces: Any) -> None:
    for turns in chats(20):
        messages = [{"role": role, "content": text} for role, text in turns[:-1]]
        size = pieces.get_piece_size()
        expected = [size + 1, size + 3]
        for role, text in turns[:-1]:
            expected += single(pieces, role, "", text)
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if not any(name in text for _, text in turns for name in tokenizer.all_special_tokens):
            assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == [*expected, size + 7]


def test_the_line_break_before_an_answer_is_no_part_of_it(tokenizer: Any, pieces: Any) -> None:
    """``process_response`` of modeling_chatglm.py: what comes before it is the tool that is called."""
    for written, text in ((["\n", "你好 a"], "你好 a"), (["weather\n", "b"], "weather\n b"), (["a"], "a"), ([], "")):
        ids = [token for part in written for token in pieces.encode(part)]
        decoder = StreamDecoder(tokenizer)
        assert "".join(map(decoder.add, ids)) + decoder.end() == text
        assert read_answer(tokenizer, [], ids).text == text
    decoder, broken = StreamDecoder(tokenizer), pieces.encode("\n")[:1]
    assert decoder.add(broken[0]) == "" and decoder.end() == read_answer(tokenizer, [], broken).text


@pytest.mark.parametrize("system", [None, "你是助手。"])
def test_tools_are_listed_called_and_answered_as_published(tokenizer: Any, pieces: Any, system: str | None) -> None:
    """PROMPT.md, and ``format_conversation`` of finetune_chatmodel_demo: the parameters are a Python call."""
    arguments = {"city": "北京", "days": 2, "hourly": True}
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages += [
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]},
        {"role": "tool", "content": '{"t": 22}'},
        {"role": "assistant", "content": "22 度"},
    ]
    offered = [{"type": "function", "function": tool} for tool in TOOLS]
    found = tokenizer.apply_chat_template(messages, tools=offered, tokenize=False)
    call = ast.unparse(
        ast.Call(ast.Name("tool_call"), [], [ast.keyword(key, ast.Constant(value)) for key, value in arguments.items()])
    )
    prefix = system or "Answer the following questions as best as you can. You have access to the following tools:"
    listed = prefix + "\n" + json.dumps(TOOLS, indent=4, ensure_ascii=False)
    size = pieces.get_piece_size()
    expected = [size + 1, size + 3, *single(pieces, "system", "", listed), *single(pieces, "user", "", "天气？")]
    expected += single(pieces, "assistant", "weather", f"```python\n{call}\n```")
    expected += [*single(pieces, "observation", "", '{"t": 22}'), *single(pieces, "assistant", "", "22 度"), 2]
    assert tokenizer(found, add_special_tokens=False)["input_ids"] == expected
    assert tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False) == found


@pytest.mark.parametrize("file", ["tokenization_chatglm.py", "tokenizer_config.json", "special_tokens_map.json"])
def test_the_generation_is_seen_in_the_tokenizer(tmp_path: Path, file: str) -> None:
    source = save(tmp_path / "published", CHATGLM2, chatglm2_tensors(), sentencepiece_model())
    family = published_family(source)
    assert family is not None and family.NAME == "chatglm2"
    (source / file).write_text(json.dumps({"special_tokens": ROLES}))
    family = published_family(source)
    assert family is not None and family.NAME == "chatglm3"


@pytest.mark.parametrize(("given", "found"), [("chatglm2", "chatglm3"), ("chatglm3", "chatglm2")])
def test_a_checkpoint_of_the_other_generation_is_refused(tmp_path: Path, given: str, found: str) -> None:
    """The two have the same tensors: as the other it would train another chat format."""
    full = {
        "ffn_hidden_size": 13696, "hidden_size": 4096, "kv_channels": 128, "num_attention_heads": 32, "num_layers": 28,
        "padded_vocab_size": 65024, "seq_length": 32768,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(CHATGLM2 | full))
    (tmp_path / "model.safetensors").touch()
    if found == "chatglm3":
        (tmp_path / "tokenization_chatglm.py").write_text(CODE)
    with pytest.raises(ConfigError, match=rf"a published checkpoint of {found}, where model\.size=6b is {given}"):
        prepare.check(config_of(f"model={given}", f"model.path={tmp_path}").model)
    prepare.check(config_of(f"model={found}", f"model.path={tmp_path}").model)
