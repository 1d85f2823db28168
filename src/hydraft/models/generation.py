"""What ends an answer, and how one is read. Of a checkpoint's generation_config.json only the special tokens are used."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hydraft.data import chat_template, special_tokens, thinking
from hydraft.data.thinking import Answer

TAIL = 16
"""Tokens at the end of a prompt that are enough to see whether it opens the thoughts."""
CHANNELS = re.compile(
    r"<\|channel\|>(\w+)[^<]*<\|message\|>(.*?)(?:<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|$)", re.DOTALL
)
"""A message of gpt-oss: its channel and its text."""


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
    """Every token that ends an answer: those of the tokenizer, of its chat template, and of the checkpoint's generation config.

    A base model's template may end answers with ``<|im_end|>`` while its end-of-sequence token is ``<|endoftext|>``.
    """
    own = model.generation_config.eos_token_id if model.generation_config else None
    more = own if isinstance(own, list) else [own]
    closings = chat_template.of(tokenizer).closings if tokenizer.chat_template else ()
    known = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    found = (tokenizer.eos_token_id, *(known[name] for name in closings), *more)
    return list(dict.fromkeys(int(token) for token in found if token is not None))


def read_answer(tokenizer: PreTrainedTokenizerBase, prompt: list[int], ids: list[int]) -> Answer:
    """The thoughts and the text of the tokens that a model generated after ``prompt``."""
    special = special_tokens.of(tokenizer).ids_of
    harmony = _read_channels(str(tokenizer.decode(ids))) if {"<|channel|>", "<|message|>"} <= special.keys() else None
    if harmony is not None:
        return harmony
    tail = str(tokenizer.decode(prompt[-TAIL:]))
    for opening, closing in thinking.MARKS:  # marks that are special tokens are not in the decoded text
        if closing in special and (tail.rstrip().endswith(opening) or special.get(opening) in ids[:2]):
            end = ids.index(special[closing]) if special[closing] in ids else len(ids)
            thoughts, text = _text(tokenizer, ids[:end]).strip(), _text(tokenizer, ids[end + 1 :]).strip()
            return Answer(thoughts, text, end < len(ids))
    return thinking.read(_text(tokenizer, ids), thinking.opens(tail))


def _read_channels(text: str) -> Answer | None:
    """An answer in the channels of gpt-oss; None if the text has none."""
    found = CHANNELS.findall(text)
    if not found:
        return None
    thoughts = "\n".join(said.strip() for channel, said in found if channel == "analysis")
    said = "".join(said for channel, said in found if channel != "analysis")
    return Answer(thoughts, said, any(channel != "analysis" for channel, _ in found))


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(special_tokens.of(tokenizer).answer(ids), skip_special_tokens=True))


@contextmanager
def greedy(model: PreTrainedModel) -> Iterator[None]:
    """``drop_checkpoint_defaults`` for a block; afterwards the model has its generation config again."""
    own = model.generation_config
    drop_checkpoint_defaults(model)
    try:
        yield
    finally:
        model.generation_config = own
