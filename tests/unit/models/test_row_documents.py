"""No document sees another, in any architecture: packed against alone, and padded batches where that does not hold."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import packed
from bench.architectures import WINDOW, small_config, small_model
from conftest import config_of
from hydraft.config.choices import Batching
from hydraft.data.batch import Padded, PaddingFree
from hydraft.errors import ConfigError
from hydraft.models import attention, row_documents
from hydraft.models.batching import shared_positions
from hydraft.models.load import settle_batching
from hydraft.plan import preflight
from hydraft.system.source_tree import TINY

APART = {
    "llama": (), "qwen3": ("window",), "mistral": ("window",), "phimoe": ("window",), "gemma2": ("softcap", "window"),
    "gemma3_text": ("window",), "gpt_oss": ("sinks", "window"), "deepseek_v3": (), "qwen3_moe": ("window",), "glm4": (), "gpt2": (),
}  # fmt: skip
"""Cheap architectures that keep documents apart, and what their attention has."""

PADDED = {
    "llama4_text": "chunked_attention", "qwen3_5_text": "linear_attention", "lfm2": "conv layers",
    "nemotron": "does not hand its options on", "stablelm": "AttentionInterface", "doge": "mask of its own",
    "deepseek_v32": "deepseek_sparse_attention",
}  # fmt: skip
"""Those that do not, and why."""


@pytest.mark.parametrize("model_type", APART)
def test_documents_of_one_row_get_what_they_get_alone(model_type: str) -> None:
    """Logits and gradients of all weights within 1e-5 of the model's own eager attention, with windows shorter than documents."""
    result = packed.compare(model_type)
    assert result.reason is None
    assert result.features == APART[model_type]
    assert result.logits <= 1e-5 and result.gradients <= 1e-5


@pytest.mark.parametrize("model_type", PADDED)
def test_what_does_not_keep_documents_apart_is_padded(model_type: str) -> None:
    """Padded, documents get what they get alone; in one row, they would not, or the attention refuses."""
    result = packed.compare(model_type)
    assert result.reason is not None
    assert PADDED[model_type] in result.reason
    assert result.logits <= 1e-5 and result.gradients <= 1e-5
    assert result.in_one_row is None or result.in_one_row > 1e-2


def eager_and_ours(model: Any, compute: Any) -> list[Any]:
    found = []
    for use in (lambda: model.set_attn_implementation("eager"), lambda: attention.use(model)):
        use()
        with torch.no_grad():
            found.append(compute())
    return found


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss", "mistral"])
def test_batches_without_boundaries_have_windows_softcap_and_sinks_too(model_type: str) -> None:
    """Padded on the right as for the loss, padded on the left with a cache as for answers, and not padded at all."""
    model = small_model(model_type)
    batch = {name: value for name, value in Padded(0)([packed.documents()]).items() if name != "labels"}
    real = batch["attention_mask"].bool()
    eager, ours = eager_and_ours(model, lambda: model(**batch).logits[real])
    torch.testing.assert_close(ours, eager, rtol=0, atol=1e-5 * float(eager.abs().max()))

    left = {name: value.flip(1) for name, value in batch.items()}
    settings: dict[str, Any] = {
        "max_new_tokens": 2 * WINDOW,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    eager, ours = eager_and_ours(model, lambda: model.generate(**left, **settings, use_cache=True))
    assert torch.equal(ours, eager)

    ids = batch["input_ids"][2:3]
    eager, ours = eager_and_ours(model, lambda: model(input_ids=ids).logits)
    torch.testing.assert_close(ours, eager, rtol=0, atol=1e-5 * float(eager.abs().max()))


def test_a_layer_that_is_not_told_the_boundaries_is_refused() -> None:
    """Whatever the allow-list says: Nemotron's layers do not hand options on."""
    model = small_model("nemotron")
    attention.use(model)
    with pytest.raises(ConfigError, match=r"NemotronAttention is not told.*data.batching=padded data.packing=false"):
        model(**PaddingFree()([packed.documents()]))
    model(**Padded(0)([packed.documents()]))


def test_the_routers_of_experts_are_balanced_alike_in_one_row_and_padded() -> None:
    """Their loss is over the tokens of a batch, of which padding is none."""
    model = small_model("mixtral")
    model.config.output_router_logits = True
    attention.use(model)
    with torch.no_grad():
        losses = [model(**collate([packed.documents()])) for collate in (Padded(0), PaddingFree())]
    assert float(losses[0].aux_loss) > 0
    assert float(losses[1].aux_loss) == pytest.approx(float(losses[0].aux_loss), rel=1e-6)
    assert float(losses[1].loss) == pytest.approx(float(losses[0].loss), rel=1e-6)


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ({"model_type": "qwen3_next", "full_attention_interval": 4}, "full_attention_interval"),
        ({"model_type": "qwen3_5", "text_config": {"layer_types": ["linear_attention", "full_attention"]}}, "linear_attention"),
        ({"model_type": "jamba", "attn_layer_period": 8}, "attn_layer_period"),
        ({"model_type": "falcon_h1", "mamba_d_ssm": 1536}, "mamba_d_ssm"),
        ({"model_type": "llama4", "text_config": {"attention_chunk_size": 8192}}, "attention_chunk_size"),
        ({"model_type": "lfm2", "conv_L_cache": 3}, "conv_L_cache"),
        ({"model_type": "deepseek_v32", "index_topk": 2048}, "index_topk"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "not causal"),
        ({"model_type": "llama4_text", "attention_chunk_size": None}, None),
        ({"model_type": "gpt_oss", "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128}, None),
        ({"model_type": "qwen2", "sliding_window": 32768, "use_sliding_window": False}, None),
    ],
)  # fmt: skip
def test_what_a_config_json_tells(native: dict[str, Any], reason: str | None) -> None:
    found = row_documents.config_reason(native)
    assert found is None if reason is None else found is not None and reason in found


@pytest.mark.parametrize(
    ("rope", "overrides", "noted"),
    [
        ({"type": "longrope", "short_factor": [1.0]}, ["data.max_length=8192"], "4,096 tokens"),
        ({"rope_type": "longrope"}, ["data.max_length=8192", "train.micro_batch_size=1"], None),
        ({"rope_type": "longrope"}, ["data.max_length=8192", "train.micro_batch_size=1", "data.packing=true"], "4,096 tokens"),
        ({"rope_type": "longrope"}, ["data.max_length=4096"], None),
        ({"rope_type": "llama3"}, ["data.max_length=8192"], None),
    ],
)  # fmt: skip
def test_rotary_frequencies_that_a_batch_shares_are_said(
    rope: dict[str, Any], overrides: list[str], noted: str | None
) -> None:
    native = {"model_type": "phi3", "original_max_position_embeddings": 4096, "rope_scaling": rope}
    notes = shared_positions(config_of("train.micro_batch_size=2", *overrides), native)
    assert (
        notes == []
        if noted is None
        else len(notes) == 1 and noted in notes[0] and "train.micro_batch_size=1" in notes[0]
    )


def folder_of(model_type: str, folder: Path) -> Path:
    """A folder with the config.json of a small model, and no weights."""
    (folder / "config.json").write_text(json.dumps(small_config(model_type).to_dict() | {"vocab_size": 3072}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(TINY / name)
    return folder


def test_a_run_of_a_hybrid_model_is_padded_and_packing_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = folder_of("qwen3_5_text", tmp_path)
    config = config_of("model=auto", f"model.path={folder}", "model.init=random", "lora.target_modules=[q_proj]")
    admitted = preflight.admit(preflight.resolve(config, None))
    assert admitted.config.data.batching is Batching.padded
    assert [note for note in admitted.notes if "data.batching=padded" in note and "linear_attention layers" in note]
    packing = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=True))
    with pytest.raises(ConfigError, match=r"data.packing=true: .*linear_attention layers: use data.packing=false"):
        preflight.admit(preflight.resolve(packing, None))


def test_what_only_the_code_of_a_model_tells_is_seen_before_its_weights_are_read(tmp_path: Path) -> None:
    """StableLM's config.json is like that of Llama."""
    section = dataclasses.replace(config_of().model, path=str(folder_of("stablelm", tmp_path)))
    config = dataclasses.replace(config_of(), model=section)
    settled, notes = settle_batching(config)
    assert settled.data.batching is Batching.padded
    assert len(notes) == 1 and notes[0].startswith("data.batching=padded: ")
    assert settle_batching(config_of()) == (config_of(), [])  # the default run stays padding-free
    packing = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=True))
    with pytest.raises(ConfigError, match=r"data.packing=true: .*StableLmForCausalLM.*use data.packing=false"):
        settle_batching(packing)
