"""Records to tokens and labels. Only what the model is to say is trained: the answer and its end, never the prompt.

Shapes: T tokens of one record.
"""

from dataclasses import dataclass
from typing import TypedDict

from transformers import PreTrainedTokenizerBase

from hydraft.config import ConfigError, DataConfig
from hydraft.data.formats import Record

IGNORE = -100
"""A label that torch's cross-entropy passes over."""


class Example(TypedDict):
    """One record, ready for the model."""

    input_ids: list[int]  # (T,)
    labels: list[int]  # (T,): the same ids where trained, IGNORE elsewhere


@dataclass(frozen=True)
class Truncation:
    """What ``data.max_length`` cut away, over all records."""

    records: int = 0
    """Records that were longer."""
    prompt_tokens: int = 0
    """Tokens cut from the middle of prompts."""
    answer_tokens: int = 0
    """Tokens cut from the end of answers (the end-of-sequence token with them)."""

    def __str__(self) -> str:
        return f"{self.records} records cut: {self.prompt_tokens} prompt and {self.answer_tokens} answer tokens"


def encode(
    records: list[Record], tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> tuple[list[Example], Truncation]:
    """Tokens and labels of every record.

    Prompt and answer are tokenised apart, so that the boundary is the one generation sees.

    Raises:
        ConfigError: the tokenizer has no end-of-sequence token, or no chat template where one is asked for.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("model.path: its tokenizer has no end-of-sequence token, so no answer could learn to end")
    examples = []
    records_cut = prompt_cut = answer_cut = 0
    for record in records:
        prompt, answer = split(record, tokenizer, data.template)
        kept_prompt, kept_answer = truncate(prompt, answer, data.max_length)
        examples.append(_example(kept_prompt, kept_answer))
        records_cut += len(kept_prompt) + len(kept_answer) < len(prompt) + len(answer)
        prompt_cut += len(prompt) - len(kept_prompt)
        answer_cut += len(answer) - len(kept_answer)
    return examples, Truncation(records_cut, prompt_cut, answer_cut)


def split(record: Record, tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[list[int], list[int]]:
    """The ids of a record's prompt and of what is trained: its answer and the end-of-sequence token."""
    eos = int(tokenizer.eos_token_id)
    if "text" in record:
        return [], [*_ids(tokenizer, record["text"]), eos]
    return encode_prompt(record, tokenizer, template), [*_ids(tokenizer, record["output"]), eos]


def encode_prompt(record: Record, tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """The ids that ask for an answer: the chat template's, up to where the assistant speaks, or the plain prompt's."""
    if template == "chat":
        return chat_prompt(tokenizer, user_text(record), record.get("system"))
    prompt = template.format(instruction=record["instruction"], input=record.get("input", ""))
    return list(tokenizer(prompt)["input_ids"])


def user_text(record: Record) -> str:
    """Instruction and input as one turn, a line each; without input, the instruction alone."""
    return "\n".join(part for part in (record["instruction"], record.get("input", "")) if part)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, user: str, system: str | None = None) -> list[int]:
    """The ids of a chat's first turn, ending where the answer begins.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "data.template=chat: this model's tokenizer has no chat template; "
            'give a plain one: data.template="{instruction}\\n{input}\\n"'
        )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    return list(ids)


def truncate(prompt: list[int], answer: list[int], max_length: int) -> tuple[list[int], list[int]]:
    """Fit a record into ``max_length`` tokens without losing its answer.

    The prompt gives way first, from its middle (its ends hold the instruction and the turn markers), down to a quarter
    of the length; only then does the answer lose its end.
    """
    excess = len(prompt) + len(answer) - max_length
    if excess <= 0:
        return prompt, answer
    keep = max(len(prompt) - excess, min(len(prompt), max_length // 4))
    head = (keep + 1) // 2
    prompt = prompt if keep == len(prompt) else prompt[:head] + prompt[len(prompt) - (keep - head) :]
    return prompt, answer[: max_length - len(prompt)]


def _example(prompt: list[int], answer: list[int]) -> Example:
    labels = [IGNORE] * len(prompt) + answer
    if labels:
        labels[0] = IGNORE  # nothing comes before the first token, so nothing predicts it
    return {"input_ids": prompt + answer, "labels": labels}


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
