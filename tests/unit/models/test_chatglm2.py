"""A converted ChatGLM2 is equivalent to the published architecture, and its tokenizer to SentencePiece.

Shapes: B sequences, T tokens, H hidden size, V vocabulary, A heads, G key-value groups, D head size.
"""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from torch.nn.functional import cross_entropy, silu
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmForCausalLM

from hydraft.models.convert.convert import convert
from published import CHATGLM2, chatglm2_tensors, fuzz, save, sentencepiece_model

FUZZED = 10_000
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatglm2")
    source = save(folder / "published", CHATGLM2, chatglm2_tensors(), sentencepiece_model())
    convert(source, folder / "native")
    return folder / "native"


@pytest.fixture(scope="module")
def native(converted: Path) -> GlmForCausalLM:
    model, info = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32, output_loading_info=True)
    assert isinstance(model, GlmForCausalLM)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + CHATGLM2["layernorm_epsilon"]) * weight


def rotate(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions on the first half of each head, in interleaved pairs: (B, T, heads, D)."""
    turned = CHATGLM2["kv_channels"] // 2
    frequencies = base ** (-torch.arange(0, turned, 2) / turned)
    angle = (positions[..., None] * frequencies)[:, :, None]  # (B, T, 1, turned / 2)
    even, odd = x[..., 0:turned:2], x[..., 1:turned:2]
    pairs = torch.stack([even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()], dim=-1)
    return torch.cat([pairs.flatten(-2), x[..., turned:]], dim=-1)


def attention(
    x: torch.Tensor, w: Weights, layer: str, positions: torch.Tensor, visible: torch.Tensor, base: float
) -> torch.Tensor:
    heads, groups, size = (CHATGLM2[key] for key in ("num_attention_heads", "multi_query_group_num", "kv_channels"))
    mixed = x @ w[f"{layer}.query_key_value.weight"].T + w[f"{layer}.query_key_value.bias"]
    query, key, value = mixed.split([heads * size, groups * size, groups * size], dim=-1)
    query = rotate(query.unflatten(-1, (heads, size)), positions, base)  # (B, T, A, D)
    key = rotate(key.unflatten(-1, (groups, size)), positions, base).repeat_interleave(heads // groups, dim=2)
    value = value.unflatten(-1, (groups, size)).repeat_interleave(heads // groups, dim=2)
    scores = torch.einsum("bqad,bkad->baqk", query, key) / math.sqrt(size)
    chances = scores.masked_fill(~visible[:, None], -1e30).softmax(-1)
    return torch.einsum("baqk,bkad->bqad", chances, value).flatten(-2) @ w[f"{layer}.dense.weight"].T


def reference(w: Weights, ids: torch.Tensor, mask: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    """Logits (B, T, V) of ids (B, T), implemented as modeling_chatglm.py describes; mask (B, T) is 0 for padding."""
    w = {name.removeprefix("transformer."): value for name, value in w.items()}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    visible = torch.ones(ids.shape[1], ids.shape[1]).tril().bool() & mask[:, None].bool()  # (B, T, T)
    x = w["embedding.word_embeddings.weight"][ids]
    for index in range(CHATGLM2["num_layers"]):
        layer = f"encoder.layers.{index}"
        normed = rms_norm(x, w[f"{layer}.input_layernorm.weight"])
        x = x + attention(normed, w, f"{layer}.self_attention", positions, visible, base)
        normed = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"])
        gate, up = (normed @ w[f"{layer}.mlp.dense_h_to_4h.weight"].T).chunk(2, dim=-1)
        x = x + (silu(gate) * up) @ w[f"{layer}.mlp.dense_4h_to_h.weight"].T
    return rms_norm(x, w["encoder.final_layernorm.weight"]) @ w["output_layer.weight"].T


def batch(padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, CHATGLM2["padded_vocab_size"], (4, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        for row, length in enumerate((0, 3, 17, 38)):
            mask[row, :length], ids[row, :length] = 0, CHATGLM2["pad_token_id"]
    return ids, mask


def weights() -> Weights:
    return {name: value.float() for name, value in chatglm2_tensors().items()}


@pytest.mark.parametrize("padded", [False, True])
def test_logits_equal_those_of_the_published_architecture(native: GlmForCausalLM, padded: bool) -> None:
    ids, mask = batch(padded)
    with torch.no_grad():
        expected, found = reference(weights(), ids, mask), native(input_ids=ids, attention_mask=mask).logits
    difference = (expected - found)[mask.bool()].abs().max().item()
    print(f"padded={padded}: logits {difference:.1e} difference, spread {expected.std():.2f}")
    assert expected.std() > 0.5  # otherwise a difference could not be detected
    assert difference <= 5e-5


def test_loss_and_gradients_equal_those_of_the_published_architecture(native: GlmForCausalLM) -> None:
    ids, mask = batch(padded=True)
    labels = ids.masked_fill(mask.cumsum(-1) <= 1, -100)  # no token predicts the first one of a row
    theirs = {name: value.requires_grad_() for name, value in weights().items() if "inv_freq" not in name}
    logits = reference(theirs, ids, mask)
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    expected.backward()
    native.zero_grad()
    loss = native(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    ours = published_gradients(native)
    assert ours.keys() == theirs.keys()
    worst = max((ours[name] - value.grad).abs().max().item() for name, value in theirs.items())
    print(f"loss {abs(loss.item() - expected.item()):.1e} difference, gradients {worst:.1e}")
    assert abs(loss.item() - expected.item()) <= 1e-5
    assert worst <= 1e-3
    assert min(value.grad.abs().max().item() for value in theirs.values()) > 0


def published_gradients(native: GlmForCausalLM) -> Weights:
    """The native model's gradients with the published names."""
    g = {name: parameter.grad for name, parameter in native.named_parameters()}
    found = {
        "transformer.embedding.word_embeddings.weight": g["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": g["model.norm.weight"],
        "transformer.output_layer.weight": g["lm_head.weight"],
    }
    for index in range(CHATGLM2["num_layers"]):
        old, new = f"transformer.encoder.layers.{index}", f"model.layers.{index}"
        for what in ("weight", "bias"):
            parts = [g[f"{new}.self_attn.{kind}_proj.{what}"] for kind in "qkv"]
            found[f"{old}.self_attention.query_key_value.{what}"] = torch.cat(parts)
        for there, here in {
            "input_layernorm": "input_layernorm",
            "post_attention_layernorm": "post_attention_layernorm",
            "self_attention.dense": "self_attn.o_proj",
            "mlp.dense_h_to_4h": "mlp.gate_up_proj",
            "mlp.dense_4h_to_h": "mlp.down_proj",
        }.items():
            found[f"{old}.{there}.weight"] = g[f"{new}.{here}.weight"]
    return found


def test_greedy_tokens_equal_those_of_the_published_architecture(native: GlmForCausalLM) -> None:
    ids, mask = batch(padded=True)
    found = native.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    ended = torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(12):
        with torch.no_grad():
            token = reference(weights(), ids, mask)[:, -1].argmax(-1).masked_fill(ended, CHATGLM2["pad_token_id"])
        ended |= token == CHATGLM2["eos_token_id"]
        ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    assert found.tolist() == ids.tolist()


@pytest.fixture(scope="module")
def tokenizer(converted: Path) -> Any:
    return AutoTokenizer.from_pretrained(converted)


@pytest.fixture(scope="module")
def sentencepiece_tokenizer() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())


def test_text_is_encoded_and_decoded_as_by_sentencepiece(tokenizer: Any, sentencepiece_tokenizer: Any) -> None:
    texts = fuzz(FUZZED)
    found = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    different = [text for text, ids in zip(texts, found, strict=True) if ids != sentencepiece_tokenizer.encode(text)]
    assert different == []
    backend = tokenizer.backend_tokenizer
    different = [
        text
        for text, ids in zip(texts, found, strict=True)
        if backend.decode(ids, False) != sentencepiece_tokenizer.decode(ids)
    ]
    assert different == []
    assert sum(len(set(text)) > 3 for text in texts) > 5000


def test_special_tokens_have_their_published_ids(tokenizer: Any, sentencepiece_tokenizer: Any) -> None:
    size = sentencepiece_tokenizer.get_piece_size()
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(size, size + 5))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 2, 0)
    assert tokenizer.bos_token_id is None
    assert tokenizer("people 你好")["input_ids"] == [size + 1, size + 3, *sentencepiece_tokenizer.encode("people 你好")]
    rows = tokenizer(["你好", "一二三四五六七"], padding=True)
    assert rows["attention_mask"][0][0] == 0 and rows["attention_mask"][0][-1] == 1
    assert "token_type_ids" not in rows
    assert (
        tokenizer.decode([size + 1, size + 3, *sentencepiece_tokenizer.encode("你好 a"), 2], skip_special_tokens=True)
        == "你好 a"
    )


def round_text(index: int, question: str) -> str:
    return f"[Round {index}]\n\n问：{question}\n\n答："


def test_chats_are_encoded_as_published(tokenizer: Any, sentencepiece_tokenizer: Any) -> None:
    generator = random.Random(5)
    start = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    named = ("[gMASK]", "<sop>", "[MASK]", "</s>", "<unk>")  # in a rendered chat, these are the special tokens
    contents = [text for text in fuzz(2000, seed=7) if not any(name in text for name in named)]
    for _ in range(300):
        turns = generator.choices(contents, k=2 * generator.randint(1, 3))
        history, text = [], ""
        for index, (question, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True), 1):
            text += round_text(index, question)
            history.append({"role": "user", "content": question})
            prompt = start + sentencepiece_tokenizer.encode(text)
            rendered = tokenizer.apply_chat_template(history, add_generation_prompt=True, return_dict=False)
            assert rendered == prompt
            history.append({"role": "assistant", "content": answer})
            # The published training encodes prompt and last answer separately, and appends the end token.
            whole = tokenizer.apply_chat_template(history, return_dict=False)
            assert whole == [*prompt, *sentencepiece_tokenizer.encode(answer), 2]
            text += f"{answer}\n\n"


def test_a_system_turn_is_put_before_the_first_question(tokenizer: Any, sentencepiece_tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "你是诗人。"}, {"role": "user", "content": "写一首诗"}]
    found = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert found[2:] == sentencepiece_tokenizer.encode(round_text(1, "你是诗人。\n写一首诗"))
    with pytest.raises(Exception, match="at most one system turn"):
        tokenizer.apply_chat_template([*chat, *chat[1:]])
