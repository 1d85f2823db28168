"""A converted Baichuan is equivalent to the published architecture, and its tokenizer to SentencePiece.

Shapes: B sequences, T tokens, H hidden size, V vocabulary, A heads, D head size.
"""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from sentencepiece import sentencepiece_model_pb2
from torch.nn.functional import cross_entropy, normalize, silu
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hydraft.errors import ConfigError
from hydraft.models.convert.convert import convert
from hydraft.models.families import sentencepiece as bpe
from published import BAICHUAN1, BAICHUAN2, RESERVED, baichuan_tensors, fuzz, save, sentencepiece_model

FUZZED = 10_000
Weights = dict[str, torch.Tensor]
TURN = "<reserved_192>"
"""The piece with id 195 in the small model, which starts a user's turn."""
GENERATIONS = {1: BAICHUAN1, 2: BAICHUAN2}


def shuffle_pieces(model: bytes) -> bytes:
    """The same pieces in another order, so that ids do not follow scores, as in Baichuan2 from id 99968 on."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    normal = [index for index, piece in enumerate(proto.pieces) if piece.type == 1]
    contents = [(proto.pieces[index].piece, proto.pieces[index].score) for index in normal]
    random.Random(3).shuffle(contents)
    for index, (text, score) in zip(normal, contents, strict=True):
        proto.pieces[index].piece, proto.pieces[index].score = text, score
    return bytes(proto.SerializeToString())


def weights(generation: int) -> Weights:
    return baichuan_tensors(dtype=torch.float32, inverse_frequencies=generation == 1)


@pytest.fixture(scope="module")
def model() -> bytes:
    return shuffle_pieces(sentencepiece_model(dummy_prefix=False, defined=RESERVED))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, model: bytes) -> dict[int, Path]:
    """Both generations in fp32, in which Baichuan2's folded head is as exact as the reference."""
    folder = tmp_path_factory.mktemp("baichuan")
    for generation, config in GENERATIONS.items():
        source = save(folder / f"published{generation}", config, weights(generation), model, count=2)
        convert(source, folder / f"native{generation}")
    return {generation: folder / f"native{generation}" for generation in GENERATIONS}


@pytest.fixture(scope="module", params=list(GENERATIONS))
def case(request: pytest.FixtureRequest, converted: dict[int, Path]) -> tuple[int, LlamaForCausalLM]:
    """A generation and its native model."""
    model, info = AutoModelForCausalLM.from_pretrained(
        converted[request.param], dtype=torch.float32, output_loading_info=True
    )
    assert isinstance(model, LlamaForCausalLM)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return request.param, model.eval()


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + BAICHUAN2["rms_norm_eps"]) * weight


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary positions: dimension i of a head is rotated with dimension i + D / 2: (B, T, A, D)."""
    size = x.shape[-1]
    frequencies = 10000.0 ** (-torch.arange(0, size, 2) / size)
    angle = (positions[..., None] * frequencies)[:, :, None]  # (B, T, 1, D / 2)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], dim=-1)


def reference(w: Weights, generation: int, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) of ids (B, T), implemented as modeling_baichuan.py describes; mask (B, T) is 0 for padding."""
    heads = BAICHUAN2["num_attention_heads"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    visible = torch.ones(ids.shape[1], ids.shape[1]).tril().bool() & mask[:, None].bool()  # (B, T, T)
    x = w["model.embed_tokens.weight"][ids]
    for index in range(BAICHUAN2["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        normed = rms_norm(x, w[f"{layer}.input_layernorm.weight"])
        mixed = (normed @ w[f"{layer}.self_attn.W_pack.weight"].T).unflatten(-1, (3, heads, -1))  # (B, T, 3, A, D)
        query, key, value = mixed.unbind(2)
        query, key = rotate(query, positions), rotate(key, positions)
        scores = torch.einsum("bqad,bkad->baqk", query, key) / math.sqrt(query.shape[-1])
        chances = scores.masked_fill(~visible[:, None], -1e30).softmax(-1)
        mixed = torch.einsum("baqk,bkad->bqad", chances, value).flatten(-2)
        x = x + mixed @ w[f"{layer}.self_attn.o_proj.weight"].T
        normed = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"])
        gate, up = (normed @ w[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (silu(gate) * up) @ w[f"{layer}.mlp.down_proj.weight"].T
    head = w["lm_head.weight"]
    return rms_norm(x, w["model.norm.weight"]) @ (normalize(head) if generation == 2 else head).T


def batch(padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, BAICHUAN2["vocab_size"], (4, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        for row, length in enumerate((0, 3, 17, 38)):
            mask[row, :length], ids[row, :length] = 0, BAICHUAN2["pad_token_id"]
    return ids, mask


@pytest.mark.parametrize("padded", [False, True])
def test_logits_equal_those_of_the_published_architecture(case: tuple[int, LlamaForCausalLM], padded: bool) -> None:
    generation, native = case
    ids, mask = batch(padded)
    with torch.no_grad():
        expected = reference(weights(generation), generation, ids, mask)
        found = native(input_ids=ids, attention_mask=mask).logits
    difference = (expected - found)[mask.bool()].abs().max().item()
    print(f"baichuan{generation} padded={padded}: logits {difference:.1e} difference, spread {expected.std():.2f}")
    assert expected.std() > 0.5  # otherwise a difference could not be detected
    assert difference <= 5e-5


def test_loss_and_gradients_equal_those_of_the_published_architecture(case: tuple[int, LlamaForCausalLM]) -> None:
    generation, native = case
    ids, mask = batch(padded=True)
    labels = ids.masked_fill(mask.cumsum(-1) <= 1, -100)  # no token predicts the first one of a row
    theirs = {name: value.requires_grad_() for name, value in weights(generation).items() if "inv_freq" not in name}
    logits = reference(theirs, generation, ids, mask)
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    expected.backward()
    native.zero_grad()
    loss = native(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    ours = {name: parameter.grad for name, parameter in native.named_parameters()}
    for index in range(BAICHUAN2["num_hidden_layers"]):
        parts = [ours.pop(f"model.layers.{index}.self_attn.{kind}_proj.weight") for kind in "qkv"]
        ours[f"model.layers.{index}.self_attn.W_pack.weight"] = torch.cat(parts)
    assert ours.keys() == theirs.keys()
    if generation == 2:  # the folded head is meant to be frozen; the gradients of the layers below are the same
        del theirs["lm_head.weight"]
    worst = max((ours[name] - value.grad).abs().max().item() for name, value in theirs.items())
    print(f"baichuan{generation}: loss {abs(loss.item() - expected.item()):.1e} difference, gradients {worst:.1e}")
    assert abs(loss.item() - expected.item()) <= 1e-5
    assert worst <= 1e-3
    assert min(value.grad.abs().max().item() for value in theirs.values()) > 0


def test_greedy_tokens_equal_those_of_the_published_architecture(case: tuple[int, LlamaForCausalLM]) -> None:
    generation, native = case
    ids, mask = batch(padded=True)
    found = native.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    published, ended = weights(generation), torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(12):
        with torch.no_grad():
            token = reference(published, generation, ids, mask)[:, -1].argmax(-1).masked_fill(ended, 0)
        ended |= token == BAICHUAN2["eos_token_id"]
        ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    assert found.tolist() == ids.tolist()


def test_the_head_is_folded_in_fp32_and_kept_in_fp16(tmp_path: Path, model: bytes) -> None:
    tensors = baichuan_tensors()
    convert(save(tmp_path / "published", BAICHUAN2, tensors, model, suffix="bin", count=1), tmp_path / "native")
    made = load_file(tmp_path / "native/model-00001-of-00001.safetensors")
    assert {value.dtype for value in made.values()} == {torch.float16}
    assert torch.equal(made["lm_head.weight"], normalize(tensors["lm_head.weight"].float()).half())
    assert torch.equal(made["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])


@pytest.fixture(scope="module")
def tokenizer(converted: dict[int, Path]) -> Any:
    return AutoTokenizer.from_pretrained(converted[2])


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


def test_the_first_generation_has_no_chat_template(converted: dict[int, Path]) -> None:
    assert AutoTokenizer.from_pretrained(converted[1]).chat_template is None


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
