"""Tokenizers with the chat templates of published models: the embedded model's tokenizer with their special tokens.

The templates in tests/fixtures/templates behave like the published ones, without their long texts.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer

TEMPLATES = Path(__file__).parents[1] / "fixtures/templates"
TINY = Path(__file__).parents[2] / "src/hydraft/models/tiny"
THINK = ("<think>", "</think>")
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
OF_DEEPSEEK = (
    "<｜User｜>", "<｜Assistant｜>",
    *(f"<｜tool▁{what}▁{end}｜>" for what in ("calls", "call", "outputs", "output") for end in ("begin", "end")),
    "<｜tool▁sep｜>",
)  # fmt: skip
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>")
PUBLISHED: dict[str, tuple[str | None, str, tuple[str, ...], tuple[str, ...]]] = {
    "chatml": (None, "<|im_end|>", CHATML, ()),
    "qwen2_5": (None, "<|im_end|>", CHATML, ()),
    "qwen3": (None, "<|im_end|>", CHATML, THINK),
    "qwen3_5": (None, "<|im_end|>", CHATML, THINK),
    "qwen3_thinking_2507": (None, "<|im_end|>", CHATML, THINK),
    "qwen3_instruct_2507": (None, "<|im_end|>", CHATML, THINK),
    "smollm3": (None, "<|im_end|>", CHATML, THINK),
    "deepseek_r1_distill": (*DEEPSEEK, DEEPSEEK, (*OF_DEEPSEEK, *THINK)),
    "deepseek_v3_1": (*DEEPSEEK, DEEPSEEK, (*OF_DEEPSEEK, *THINK)),
    "glm_4_5": (
        None, "<|endoftext|>",
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"), THINK,
    ),
    "kimi_k2_thinking": (
        None, "<|im_end|>",
        (*CHATML, "<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|tool_calls_section_begin|>",
         "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"), THINK,
    ),
    "granite_3_2": (None, "<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), ()),
    "gpt_oss": ("<|startoftext|>", "<|return|>", ("<|startoftext|>", "<|endoftext|>", *HARMONY), ()),
    "llama_3_1": ("<|begin_of_text|>", "<|eot_id|>", HEADERS, ()),
    "mistral_v0_1": ("<s>", "</s>", ("<s>", "</s>"), ()),
    "mistral_v0_3": (
        "<s>", "</s>",
        ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
         "[/TOOL_RESULTS]"), (),
    ),
    "gemma_2": ("<bos>", "<eos>", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), ()),
    "phi_3": ("<s>", "<|endoftext|>", ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), ()),
}  # fmt: skip
"""By template: the tokens that begin and end a text, the special tokens, and further added tokens."""


@cache
def _embedded() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def templated(name: str, eos: str | None = None) -> Any:
    """A tokenizer with the template ``name``; ``eos`` replaces its end-of-sequence token, as a base model has another one."""
    begin, end, special, added = PUBLISHED[name]
    tokenizer = copy.deepcopy(_embedded())
    tokenizer.add_special_tokens({"eos_token": eos or end, **({"bos_token": begin} if begin else {})})
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer
