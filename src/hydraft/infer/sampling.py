"""How an answer is drawn: the settings as transformers' GenerationConfig, and where an answer ends."""

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def settings(
    tokenizer: PreTrainedTokenizerBase,
    ends: list[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
) -> GenerationConfig:
    """Greedy at ``temperature`` 0, sampled above it. ``ends``: see ``end_ids``."""
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


def own_defaults_away(model: PreTrainedModel) -> None:
    """Keep only a checkpoint's special tokens of its generation_config.json.

    transformers fills whatever a request leaves open from there (Qwen2.5's has a repetition penalty), so that a greedy answer
    would not be greedy.
    """
    own = model.generation_config
    assert own is not None
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )


def end_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those that the checkpoint's own generation config has."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    more = own if isinstance(own, list) else [own]
    ends = [int(token) for token in (tokenizer.eos_token_id, *more) if token is not None]
    return list(dict.fromkeys(ends))
