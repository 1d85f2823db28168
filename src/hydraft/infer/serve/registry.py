"""What the server answers as: the base and each adapter, by name, with the words and the template of each."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from hydraft.data.formats import Conversation, Turn
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError
from hydraft.infer.load import Loaded, Speaker
from hydraft.infer.serve.multi_lora import BASE, base_of
from hydraft.models import generation

ENCODER = ThreadPoolExecutor(1, "encode")
"""Prompts are tokenised here, one at a time: a long one must not hold up the others' tokens."""


@dataclass
class Voice:
    """A name that requests can ask."""

    name: str
    speaker: Speaker
    adapter: str
    """As peft calls it."""
    ends: list[int]
    """The tokens that end its answers."""

    def __post_init__(self) -> None:
        """A tokenizer cannot encode and decode at once: it has two."""
        self.tokenizer = copy.deepcopy(self.speaker.tokenizer)

    def chat(self, turns: list[tuple[str, str]]) -> list[int]:
        """The ids that ask for the next answer in a conversation of (role, text).

        Raises:
            ConfigError: the model's template does not take it.
        """
        said = tuple(Turn("system" if role == "developer" else role, text) for role, text in turns)
        return prompt_ids(Conversation((*said, Turn("assistant", ""))), self.speaker.tokenizer, self.speaker.data)

    def plain(self, prompt: str | list[int]) -> list[int]:
        """The ids of a text as it is; special tokens may be written out in it."""
        if isinstance(prompt, str):
            return [int(token) for token in self.speaker.tokenizer(prompt)["input_ids"]]
        if wrong := [token for token in prompt if token >= len(self.speaker.tokenizer)]:
            raise ConfigError(f"there is no token {wrong[0]}")
        return prompt

    def text(self, token: int) -> str:
        """The text of one token."""
        return str(self.tokenizer.decode([token]))


def voices(loaded: Loaded) -> dict[str, Voice]:
    """Everything there is to ask, by name: the adapters first, then their base."""
    base = base_of(loaded.model)
    found = {
        name: Voice(name, speaker, speaker.key or BASE, generation.end_ids(speaker.tokenizer, base))
        for name, speaker in loaded.speakers.items()
    }
    first = next(iter(loaded.speakers.values()))
    if first.key is not None:
        name = first.source.base_name or first.source.model.name
        name = re.sub(r"\W+$", "", name) or "base"
        name = name if name not in found else f"{name}-base"
        template = "chat" if first.tokenizer.chat_template else first.data.template
        speaker = replace(first, data=replace(first.data, template=template), key=None)
        found[name] = Voice(name, speaker, BASE, generation.end_ids(first.tokenizer, base))
    return found
