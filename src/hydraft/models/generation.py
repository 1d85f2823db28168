"""What a checkpoint says of generation, and how much of it is taken: where an answer ends, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


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


@contextmanager
def greedy(model: PreTrainedModel) -> Iterator[None]:
    """``own_defaults_away`` for a block; what is saved of the model later has them again."""
    own = model.generation_config
    own_defaults_away(model)
    try:
        yield
    finally:
        model.generation_config = own
