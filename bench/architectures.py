"""Architectures that people fine-tune, each as a small random model of transformers' own code."""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

WINDOW = 4
"""Tokens of a sliding window, and of an attention chunk: fewer than documents have."""

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
    "sliding_window": WINDOW, "attention_chunk_size": WINDOW, "use_sliding_window": True, "max_window_layers": 1,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "chunk_size": 8, "mamba_chunk_size": 8, "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1,
    "n_group": 1, "topk_group": 1, "n_positions": 128, "n_embd": 32, "n_layer": 4, "n_head": 4,
}  # fmt: skip
"""What is set of these if the config of a model has it."""

MLA = {"num_key_value_heads": 4}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama 2 and 3, InternLM2, Baichuan2-7B", {}),
    "llama4_text": ("Llama 4", {"attn_temperature_tuning": True, "floor_scale": 4}),
    "mistral": ("Mistral", {}),
    "ministral": ("Ministral 8B", {}),
    "ministral3": ("Ministral 3", {}),
    "mixtral": ("Mixtral", {}),
    "qwen2": ("Qwen2, Qwen2.5", {}),
    "qwen2_moe": ("Qwen1.5-MoE, Qwen2-MoE", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": ("Qwen3-MoE", {}),
    "qwen3_next": ("Qwen3-Next", {}),
    "qwen3_5_text": ("Qwen3.5", {}),
    "qwen3_5_moe_text": ("Qwen3.5-MoE", {}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma 2", {"attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 1}),
    "gemma3_text": ("Gemma 3", {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    "gemma3": ("Gemma 3 with vision", {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    "gemma3n_text": (
        "Gemma 3n",
        {
            "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2, "laurel_rank": 4,
            "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8, "activation_sparsity_pattern": [0.0] * 4,
        },
    ),
    "gemma4_text": ("Gemma 4", {"vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8}),
    "phi": ("Phi-1 and 2", {}),
    "phi3": ("Phi-3, Phi-4", {}),
    "phimoe": ("Phi-3.5-MoE", {}),
    "glm": ("ChatGLM2, GLM-4 9B", {}),
    "glm4": ("GLM-4-0414, GLM-Z1", {}),
    "glm4_moe": ("GLM-4.5, 4.6", {}),
    "glm4_moe_lite": ("GLM-4.7-Flash", MLA),
    "glm_moe_dsa": ("GLM-5", MLA),
    "deepseek_v2": ("DeepSeek-V2", MLA),
    "deepseek_v3": ("DeepSeek-V3, R1, Kimi-K2", MLA),
    "deepseek_v32": ("DeepSeek-V3.2", MLA),
    "deepseek_v4": ("DeepSeek-V4", {}),
    "gpt_oss": ("gpt-oss", {}),
    "minicpm3": ("MiniCPM3", MLA),
    "cohere": ("Command R", {}),
    "cohere2": ("Command R7B, Command A", {}),
    "olmo": ("OLMo", {}),
    "olmo2": ("OLMo 2", {}),
    "olmo3": ("OLMo 3", {}),
    "olmoe": ("OLMoE", {}),
    "olmo_hybrid": ("OLMo Hybrid", {}),
    "granite": ("Granite 3", {}),
    "granitemoe": ("Granite 3 MoE", {}),
    "granitemoehybrid": ("Granite 4", {**MAMBA, "layer_types": ["mamba", "attention"] * 2}),
    "granite_swa": ("Granite with sinks", {}),
    "smollm3": ("SmolLM3", {}),
    "starcoder2": ("StarCoder2", {}),
    "stablelm": ("StableLM", {}),
    "exaone4": ("EXAONE 4", {}),
    "ernie4_5": ("ERNIE 4.5", {}),
    "ernie4_5_moe": ("ERNIE 4.5 MoE", {}),
    "hunyuan_v1_dense": ("Hunyuan", {}),
    "hunyuan_v1_moe": ("Hunyuan MoE", {}),
    "seed_oss": ("Seed-OSS", {}),
    "minimax": ("MiniMax-Text-01", {}),
    "minimax_m2": ("MiniMax-M2", {}),
    "mimo_v2_flash": ("MiMo-V2-Flash", {}),
    "dots1": ("dots.llm1", {"n_shared_experts": 1, "first_k_dense_replace": 1}),
    "kimi_linear": ("Kimi Linear", {"linear_head_dim": 8, "linear_num_heads": 4}),
    "solar_open": ("Solar Open", {}),
    "afmoe": ("Trinity", {}),
    "nemotron": ("Nemotron 3 and 4", {}),
    "nemotron_h": ("Nemotron-H", {}),
    "apertus": ("Apertus", {}),
    "arcee": ("AFM", {}),
    "helium": ("Helium", {}),
    "nanochat": ("nanochat", {}),
    "bitnet": ("BitNet", {}),
    "doge": ("Doge", {}),
    "lfm2": ("LFM2", {"layer_types": ["conv", "full_attention"] * 2}),
    "lfm2_moe": ("LFM2 MoE", {"layer_types": ["conv", "full_attention"] * 2}),
    "falcon": ("Falcon", {}),
    "falcon_h1": ("Falcon-H1", {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 8}),
    "falcon_mamba": ("Falcon Mamba", {}),
    "mamba": ("Mamba", {}),
    "mamba2": ("Mamba 2", {"num_heads": 4, "expand": 2, "head_dim": 16, "n_groups": 1, "state_size": 8}),
    "jamba": ("Jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "bamba": ("Bamba", {**MAMBA, "attn_layer_indices": [1, 3]}),
    "recurrent_gemma": ("RecurrentGemma", {"attention_window_size": WINDOW, "lru_width": 32}),
    "rwkv": ("RWKV-4", {}),
    "gpt2": ("GPT-2", {}),
    "gpt_neox": ("Pythia, GPT-NeoX", {}),
    "gptj": ("GPT-J", {"rotary_dim": 4}),
    "gpt_bigcode": ("StarCoder", {}),
    "opt": ("OPT", {"word_embed_proj_dim": 32, "ffn_dim": 48}),
    "bloom": ("BLOOM", {}),
    "mpt": ("MPT", {"d_model": 32, "n_heads": 4, "n_layers": 4}),
}  # fmt: skip
"""By ``model_type``: the models that have it, and what their small config needs besides ``SMALL``."""


def small_config(model_type: str) -> PreTrainedConfig:
    """The config of the small model."""
    default = AutoConfig.for_model(model_type)
    text = default.get_text_config(decoder=True)
    chosen = {name: value for name, value in SMALL.items() if _has(text, name)} | ARCHITECTURES[model_type][1]
    if text is default:
        return AutoConfig.for_model(model_type, **chosen)
    return AutoConfig.for_model(model_type, text_config=chosen, vision_config=VISION, mm_tokens_per_image=4)


def small_model(model_type: str) -> Any:
    """The model in fp32 on the CPU, with weights so large that what a token attends to changes its logits."""
    torch.manual_seed(0)
    config = small_config(model_type)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = kind(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        else:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.config.get_text_config(decoder=True).use_cache = False
    return model


def _has(config: PreTrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name) and not isinstance(getattr(type(config), name, None), property)
    except Exception:  # Gemma 4 refuses to read what differs from layer to layer
        return True
