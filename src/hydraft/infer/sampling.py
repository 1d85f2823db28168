"""The sampling settings of ``infer.py`` as transformers' GenerationConfig."""

from transformers import GenerationConfig, PreTrainedTokenizerBase

from hydraft.config.infer import InferConfig


def settings(
    tokenizer: PreTrainedTokenizerBase,
    ends: list[int],
    options: InferConfig,
) -> GenerationConfig:
    """Greedy decoding at ``temperature`` 0, sampling above it. ``ends``: the ids that end an answer (``generation.end_ids``)."""
    sampled = options.temperature > 0
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=sampled,
        temperature=options.temperature if sampled else None,
        top_p=options.top_p if sampled else None,
        top_k=options.top_k if sampled else None,
        repetition_penalty=options.repetition_penalty,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
        use_cache=True,
    )
