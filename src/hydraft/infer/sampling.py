"""How an answer is drawn: the settings as transformers' GenerationConfig, and where an answer ends."""

from transformers import GenerationConfig, PreTrainedTokenizerBase


def settings(
    tokenizer: PreTrainedTokenizerBase,
    ends: list[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
) -> GenerationConfig:
    """Greedy at ``temperature`` 0, sampled above it. ``ends``: see ``models/answering.py``."""
    sampled = temperature > 0
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        temperature=temperature if sampled else None,
        top_p=top_p if sampled else None,
        top_k=top_k if sampled else None,
        repetition_penalty=repetition_penalty,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
        use_cache=True,
    )
