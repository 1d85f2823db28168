"""A converted Baichuan is equivalent to the published architecture, and its tokenizer to SentencePiece.

Each generation as 7B, a Llama, and as 13B, which has ALiBi.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from sentencepiece import sentencepiece_model_pb2
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from baichuan import MODELS, batch, is_second, reference, weights
from hydraft.errors import ConfigError
from hydraft.models.convert.convert import convert
from hydraft.models.families import sentencepiece as bpe
from published import BAICHUAN2, RESERVED, baichuan_tensors, fuzz, save, sentencepiece_model

FUZZED = 10_000
TURN = "<reserved_192>"
"""The piece with id 195 in the small model, which starts a user's turn."""


def shuffle_pieces(model: bytes) -> bytes:
    """The same pieces in another order, so that ids do not follow scores, as in Baichuan2 from id 99968 on."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    normal = [index for index, piece in enumerate(proto.pieces) if piece.type == 1]
    contents = [(proto.pieces[index].piece, proto.pieces[index].score) for index in normal]
    random.Random(3).shuffle(contents)
    for index, (text, score) in zip(normal, contents, strict=True):
        proto.pieces[index].piece, proto.pieces[index].score = text, score
    return bytes(proto.SerializeToString())


@pytest.fixture(scope="module")
def model() -> bytes:
    return shuffle_pieces(sentencepiece_model(dummy_prefix=False, defined=RESERVED))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, model: bytes) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("baichuan")
    for name, config in MODELS.items():
        convert(save(folder / f"published{name}", config, weights(name), model, count=2), folder / name)
    return {name: folder / name for name in MODELS}


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest, converted: dict[str, Path]) -> tuple[str, LlamaForCausalLM]:
    """A model and its native one."""
    model, info = AutoModelForCausalLM.from_pretrained(
        converted[request.param], dtype=torch.float32, output_loading_info=True
    )
    assert isinstance(model, LlamaForCausalLM)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return request.param, model.eval()


@pytest.mark.parametrize("padded", [False, True])
def test_logits_equal_those_of_the_published_architecture(case: tuple[str, LlamaForCausalLM], padded: bool) -> None:
    name, native = case
    ids, mask = batch(padded)
    with torch.no_grad():
        expected = reference(weights(name), MODELS[name], ids, mask)
        found = native(input_ids=ids, attention_mask=mask).logits
    difference = (expected - found)[mask.bool()].abs().max().item()
    print(f"baichuan{name} padded={padded}: logits {difference:.1e} difference, spread {expected.std():.2f}")
    assert expected.std() > 0.5  # otherwise a difference could not be detected
    assert difference <= 5e-5


def test_loss_and_gradients_equal_those_of_the_published_architecture(case: tuple[str, LlamaForCausalLM]) -> None:
    name, native = case
    ids, mask = batch(padded=True)
    labels = ids.masked_fill(mask.cumsum(-1) <= 1, -100)  # no token predicts the first one of a row
    theirs = {key: value.requires_grad_() for key, value in weights(name).items() if "inv_freq" not in key}
    logits = reference(theirs, MODELS[name], ids, mask)
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    expected.backward()
    native.zero_grad()
    loss = native(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    ours = {key: parameter.grad for key, parameter in native.named_parameters()}
    for index in range(BAICHUAN2["num_hidden_layers"]):
        parts = [ours.pop(f"model.layers.{index}.self_attn.{kind}_proj.weight") for kind in "qkv"]
        ours[f"model.layers.{index}.self_attn.W_pack.weight"] = torch.cat(parts)
    assert ours.keys() == theirs.keys()
    if is_second(MODELS[name]):  # the folded head is meant to be frozen; the gradients of the layers below are the same
        del theirs["lm_head.weight"]
    worst = max((ours[key] - value.grad).abs().max().item() for key, value in theirs.items())
    print(f"baichuan{name}: loss {abs(loss.item() - expected.item()):.1e} difference, gradients {worst:.1e}")
    assert abs(loss.item() - expected.item()) <= 1e-5
    assert worst <= 1e-3
    assert min(value.grad.abs().max().item() for value in theirs.values()) > 0


def test_greedy_tokens_equal_those_of_the_published_architecture(case: tuple[str, LlamaForCausalLM]) -> None:
    name, native = case
    ids, mask = batch(padded=True)
    found = native.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    published, ended = weights(name), torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(12):
        with torch.no_grad():
            token = reference(published, MODELS[name], ids, mask)[:, -1].argmax(-1).masked_fill(ended, 0)
        ended |= token == BAICHUAN2["eos_token_id"]
        ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    assert found.tolist() == ids.tolist()


def test_the_head_is_folded_and_kept_in_fp32(tmp_path: Path, model: bytes) -> None:
    tensors = baichuan_tensors()
    convert(save(tmp_path / "published", BAICHUAN2, tensors, model, suffix="bin", count=1), tmp_path / "native")
    made = load_file(tmp_path / "native/model-00001-of-00001.safetensors")
    assert {name for name, value in made.items() if value.dtype is not torch.float16} == {"lm_head.weight"}
    assert torch.equal(made["lm_head.weight"], normalize(tensors["lm_head.weight"].float()))
    assert torch.equal(made["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])


@pytest.fixture(scope="module")
def tokenizer(converted: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(converted["2-7b"])


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def test_text_is_encoded_and_decoded_as_by_sentencepiece(tokenizer: Any, sentencepiece_tokenizer: Any) -> None:
    texts = [text for text in fuzz(FUZZED, seed=2) if TURN not in text]
    assert len(texts) > 0.8 * FUZZED
    found = tokenizer(texts, split_special_tokens=True)["input_ids"]
    assert [text for text, ids in zip(texts, found, strict=True) if ids != sentencepiece_tokenizer.encode(text)] == []
    backend = tokenizer.backend_tokenizer
    back = [
        text
        for text, ids in zip(texts, found, strict=True)
        if backend.decode(ids, False) != sentencepiece_tokenizer.decode(ids)
    ]
    assert back == []
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_a_turn_token_in_user_text_does_not_start_a_turn(tokenizer: Any, sentencepiece_tokenizer: Any) -> None:
    """The published tokenizer gives id 195; here it is encoded as text, and decoded unchanged."""
    typed = tokenizer(f"a{TURN}b", split_special_tokens=True)["input_ids"]
    assert 195 in sentencepiece_tokenizer.encode(f"a{TURN}b") and 195 not in typed
    assert tokenizer.decode(typed, skip_special_tokens=True) == f"a{TURN}b"


def test_a_dummy_prefix_with_user_defined_pieces(tmp_path: Path) -> None:
    model = sentencepiece_model(dummy_prefix=True, defined=RESERVED)
    (tmp_path / "tokenizer.model").write_bytes(model)
    fast = bpe.build(bpe.read(tmp_path / "tokenizer.model"))
    sentencepiece_tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = fuzz(FUZZED, seed=4)
    found = fast.encode_batch(texts)
    different = {
        text for text, ids in zip(texts, found, strict=True) if ids.ids != sentencepiece_tokenizer.encode(text)
    }
    assert {text.replace(" ", "▁") for text in different} <= set(RESERVED)  # the exception documented in `build`
    assert len([text for text in texts if any(piece in text for piece in RESERVED)]) > 1000


def test_chats_are_encoded_as_published(tokenizer: Any, sentencepiece_tokenizer: Any) -> None:
    assert sentencepiece_tokenizer.piece_to_id(["<reserved_192>", "<reserved_193>"]) == [195, 196]
    generator = random.Random(5)
    contents = [text for text in fuzz(2000, seed=7) if not any(name in text for name in ("<s>", "</s>", "<unk>"))]
    for _ in range(300):
        system, *turns = generator.choices(contents, k=1 + 2 * generator.randint(1, 3))
        history, expected = [{"role": "system", "content": system}], sentencepiece_tokenizer.encode(system)
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            history.append({"role": "user", "content": question})
            expected += [195, *sentencepiece_tokenizer.encode(question)]
            prompt = tokenizer.apply_chat_template(history, add_generation_prompt=True, return_dict=False)
            assert prompt == [*expected, 196]
            history.append({"role": "assistant", "content": answer})
            expected += [196, *sentencepiece_tokenizer.encode(answer)]
            assert tokenizer.apply_chat_template(history, return_dict=False) == [*expected, 2]


def test_only_the_first_7b_has_no_chat_template(converted: dict[str, Path], tokenizer: Any) -> None:
    """Baichuan-13B-Chat has the turn tokens and the format of Baichuan2 (its generation_utils.py)."""
    templates = {name: AutoTokenizer.from_pretrained(folder).chat_template for name, folder in converted.items()}
    assert templates == dict.fromkeys(MODELS, tokenizer.chat_template) | {"1-7b": None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m.trainer_spec, "model_type", 1), "not BPE"),
        (lambda m: setattr(m.normalizer_spec, "precompiled_charsmap", b"x"), "normalises text"),
        (lambda m: setattr(m.normalizer_spec, "remove_extra_whitespaces", True), "removes spaces"),
        (lambda m: setattr(m.trainer_spec, "treat_whitespace_as_suffix", True), "behind words"),
        (lambda m: setattr(m.trainer_spec, "byte_fallback", False), "byte fallback"),
        (lambda m: setattr(m.pieces[2000], "type", 5), "unused"),
        (lambda m: setattr(m.pieces[2000], "piece", m.pieces[2001].piece), "the same"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path: Path, change: Any, reason: str) -> None:
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model())
    change(proto)
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(ConfigError, match=reason):
        bpe.read(tmp_path / "tokenizer.model")


def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        bpe.read(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        bpe.read(tmp_path / "tokenizer.model")
