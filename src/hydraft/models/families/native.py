"""The model families that transformers loads, one ``Family`` each, by ``model_type``. No torch.

A new one is an entry here and a ``conf/model/<name>.yaml`` whose sizes name one of its ``architectures``.
"""

from hydraft.config.choices import Kernels
from hydraft.models.families.base import Family, Native


def _llama(factor: float) -> Native:
    """Llama 3.1 and 3.2 scale the rotary positions of Llama 3 (arXiv:2407.21783; ``rope_scaling`` of their config.json)."""
    scaled = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, **scaled},
    }


def _qwen(model_type: str, positions: int) -> Native:
    """Qwen2.5 (arXiv:2412.15115) and Qwen3 (arXiv:2505.09388), by their config.json."""
    return {
        "model_type": model_type,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    }


def _qwen3_moe(inner: int) -> Native:
    """Qwen3's mixtures of experts (arXiv:2505.09388), by their config.json; ``inner``: the feed-forward size of an expert."""
    return _qwen("qwen3_moe", 40960) | {
        "moe_intermediate_size": inner,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001,
    }


def _qwen35(value_heads: int) -> Native:
    """Qwen3.5's text model, by the ``text_config`` of its config.json: three gated delta nets to one layer of attention."""
    return {
        "model_type": "qwen3_5_text",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144,
        "full_attention_interval": 4,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000.0,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
        },
    }


AROUND_FEEDFORWARD = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
"""Gemma 2 and 3 normalise what goes into the feed-forward block and what comes out of it (arXiv:2408.00118)."""

FAMILIES = {
    "llama": Family(
        "Llama 3, Baichuan2, InternLM2",
        architectures={"llama3.1": _llama(8.0), "llama3.2": _llama(32.0)},
        kernels={Kernels.liger: "llama", Kernels.unsloth: "llama"},
        plain_head=True,
    ),
    "mistral": Family("Mistral", plain_head=True, query_bias=False, output_bias=False),
    "qwen2": Family(
        "Qwen2.5",
        architectures={"qwen2.5": _qwen("qwen2", 32768)},
        kernels={Kernels.liger: "qwen2", Kernels.unsloth: "qwen2"},
        plain_head=True,
        query_bias=True,
        output_bias=False,
    ),
    "qwen3": Family(
        "Qwen3",
        architectures={"qwen3": _qwen("qwen3", 40960)},
        kernels={Kernels.liger: "qwen3", Kernels.unsloth: "qwen3"},
        plain_head=True,
        head_norms=True,
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        architectures={"qwen3-30b-a3b": _qwen3_moe(768), "qwen3-235b-a22b": _qwen3_moe(1536)},
        plain_head=True,
        head_norms=True,
        experts=True,
    ),
    "baichuan_alibi": Family("Baichuan-13B, Baichuan2-13B", plain_head=True, alibi=True),
    "qwen3_5_text": Family(
        "Qwen3.5",
        architectures={"qwen3.5-small": _qwen35(16), "qwen3.5": _qwen35(32), "qwen3.5-large": _qwen35(48)},
        plain_head=True,
        head_norms=True,
        output_gate=True,
        hybrid=True,
    ),
    "glm": Family(
        "ChatGLM2, ChatGLM3",
        kernels={Kernels.liger: "glm4"},
        plain_head=True,
        output_bias=False,
        joined_gate=True,
        lora_names={"gate_proj": ("gate_up_proj",), "up_proj": ("gate_up_proj",)},
    ),
    # Brought as model=auto model.path=…: counted, with the loss that their own classes compute.
    "glm4": Family(
        "GLM-4-0414",
        output_bias=False,
        joined_gate=True,
        more_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    "phi3": Family("Phi-3, Phi-4", query_bias=False, output_bias=False, joined_query=True, joined_gate=True),
    "gemma": Family("Gemma", tied=True),
    "gemma2": Family("Gemma 2", tied=True, more_norms=AROUND_FEEDFORWARD),
    "gemma3_text": Family("Gemma 3", tied=True, head_norms=True, more_norms=AROUND_FEEDFORWARD),
    "granite": Family("Granite"),
    "ministral3": Family("Ministral 3", query_bias=False, output_bias=False),
    "smollm3": Family("SmolLM3", tied=True),
}

TEXT_MODELS = ("qwen3_5", "qwen3_5_moe", "llama4")
"""Model types of image and text checkpoints of which ``AutoModelForCausalLM`` loads the text model alone, described by ``text_config``."""
