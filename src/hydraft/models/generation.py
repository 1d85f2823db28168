"""A checkpoint's generation_config.json: only its special tokens are used, its sampling defaults are not."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def drop_checkpoint_defaults(model: PreTrainedModel) -> None:
    """Remove everything but the special tokens from the model's generation config.

    transformers takes settings that a call leaves out from there. Qwen2.5's has a repetition penalty, which would change greedy
    decoding.
    """
    own = model.generation_config
    assert own is not None
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )


def end_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Every token that ends an answer: the tokenizer's end token and those of the checkpoint's generation config."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    more = own if isinstance(own, list) else [own]
    ends = [int(token) for token in (tokenizer.eos_token_id, *more) if token is not None]
    return list(dict.fromkeys(ends))


@contextmanager
def greedy(model: PreTrainedModel) -> Iterator[None]:
    """``drop_checkpoint_defaults`` for a block; afterwards the model has its generation config again."""
    own = model.generation_config
    drop_checkpoint_defaults(model)
    try:
        yield
    finally:
        model.generation_config = own
