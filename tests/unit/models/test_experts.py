"""Experts of every layout, held against transformers' own on the same (dequantised) weights; and what an adapter covers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft.utils.integrations import dequantize_module_weight
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import stored
from conftest import config_of
from hydraft.config.choices import Precision
from hydraft.errors import ConfigError
from hydraft.models import experts
from hydraft.models.load import load_base, load_trainable

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 3072,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_experts_per_tok": 2,
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32, "q_lora_rank": 32, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "deepseek_v3": DEEPSEEK,
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},  # biases, and transposed
}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
COVERED = {
    "qwen3_moe": ATTENTION,
    "qwen2_moe": ATTENTION | {"gate_proj", "up_proj", "down_proj"},  # of the shared expert
    "deepseek_v3": {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    "gpt_oss": ATTENTION,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("mixtures")

    def made(kind: str) -> Path:
        if not (root / kind).exists():
            torch.manual_seed(0)
            stored.save(root / kind, AutoConfig.for_model(kind, **SHAPE | MIXTURES[kind]))
        return root / kind

    return made


def loss_and_gradient(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """With the gradient of the embedded tokens."""
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    model.requires_grad_(False)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    loss = model(inputs_embeds=embedded, labels=ids, use_cache=False).loss
    loss.backward()
    assert embedded.grad is not None
    return loss.detach(), embedded.grad


@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_loss_and_gradients_are_those_of_transformers(kind: str, quant: str, folder: Any) -> None:
    config = config_of("model=auto", f"model.path={folder(kind)}", f"quant={quant}", "train.precision=fp32")
    ours = load_base(config.model, config.quant, Precision.fp32)
    theirs = AutoModelForCausalLM.from_pretrained(folder(kind), dtype=torch.float32)
    stacked = list(experts.stacked(ours))
    assert stacked and all(experts.is_quantised(module) == (quant == "nf4") for _, module, _ in stacked)
    for path, module, name in stacked:
        theirs.get_parameter(path).data = experts.weight(module, name)
    for path, module in ours.named_modules():
        if isinstance(module, Linear4bit):
            theirs.get_submodule(path).weight.data = dequantize_module_weight(module).data
    loss, gradient = loss_and_gradient(ours)
    expected, their_gradient = loss_and_gradient(theirs)
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert (gradient - their_gradient).norm() <= 1e-5 * their_gradient.norm()
    assert stacked[0][1].config._experts_implementation == experts.NAME


def test_no_weight_of_the_experts_is_kept_for_the_backward_pass(folder: Any) -> None:
    config = config_of("model=auto", f"model.path={folder('qwen3_moe')}", "quant=nf4", "train.precision=fp32")
    module = next(one for _, one, _ in experts.stacked(load_base(config.model, config.quant, Precision.fp32)))
    whole = experts.weight(module, "gate_up_proj").nbytes
    saved: list[int] = []
    x = torch.randn(3, SHAPE["hidden_size"], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        module(x, torch.tensor([[0, 1], [1, 2], [2, 3]]), torch.full((3, 2), 0.5))
    assert saved and max(saved) < whole / 2


@pytest.mark.parametrize("kind", COVERED)
def test_all_linear_leaves_out_experts_and_routers(kind: str, folder: Any) -> None:
    config = config_of("model=auto", f"model.path={folder(kind)}", "quant=none", "train.precision=fp32")
    model = load_trainable(config)
    trained = {name.partition(".lora_")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == COVERED[kind]
    assert not any("mlp.experts" in name for name in trained)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("lora.target_modules=[o_proj,gate_proj] quant=none", "peft takes gate_proj in this model for a projection of its experts"),
        ("quant=int8", "quant=int8: the experts of this model, nearly all of its weights, would stay in 16 bits: use quant=nf4"),
    ],
)  # fmt: skip
def test_what_would_do_something_else_is_refused(overrides: str, message: str, folder: Any) -> None:
    config = config_of(
        "model=auto", f"model.path={folder('deepseek_v3')}", "train.precision=fp32", *overrides.split(" ")
    )
    with pytest.raises(ConfigError, match=message):
        load_trainable(config)
