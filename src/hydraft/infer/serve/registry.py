"""The models that the server offers by name: each adapter, and their base."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError
from hydraft.infer.load import LoadedModel, LoadedSource
from hydraft.infer.serve.multi_lora import BASE, base_of
from hydraft.models import generation

ENCODER = ThreadPoolExecutor(1, "encode")
"""Tokenises prompts, one at a time, so that a long one does not block the event loop."""


@dataclass
class ServedModel:
    """A model that requests can name."""

    name: str
    selected: LoadedSource
    adapter: str
    """Its adapter's name in the PeftModel; ``__base__`` for the base."""
    ends: list[int]
    """The tokens that end its answers."""

    def __post_init__(self) -> None:
        """Copy the tokenizer: one encodes prompts and the other decodes answers, at the same time."""
        self.tokenizer = copy.deepcopy(self.selected.tokenizer)

    def chat(self, turns: list[tuple[str, str]]) -> list[int]:
        """The prompt ids of a conversation of (role, text).

        Raises:
            ConfigError: the model's template does not support it.
        """
        conversation = tuple(Turn("system" if role == "developer" else role, text) for role, text in turns)
        return prompt_ids(
            Conversation((*conversation, Turn("assistant", ""))), self.selected.tokenizer, self.selected.data
        )

    def plain(self, prompt: str | list[int]) -> list[int]:
        """The ids of a text without a template; it may contain special tokens."""
        if isinstance(prompt, str):
            return [int(token) for token in self.selected.tokenizer(prompt)["input_ids"]]
        if wrong := [token for token in prompt if token >= len(self.selected.tokenizer)]:
            raise ConfigError(f"there is no token {wrong[0]}")
        return prompt

    def text(self, token: int) -> str:
        """The text of one token."""
        return str(self.tokenizer.decode([token]))


def served_models(loaded: LoadedModel) -> dict[str, ServedModel]:
    """All models by name: the adapters first, then their base."""
    base = base_of(loaded.model)
    found = {
        name: ServedModel(name, selected, selected.adapter_name or BASE, generation.end_ids(selected.tokenizer, base))
        for name, selected in loaded.sources.items()
    }
    first = next(iter(loaded.sources.values()))
    if first.adapter_name is not None:
        name = first.source.base_name or first.source.model.name
        name = re.sub(r"\W+$", "", name) or "base"
        name = name if name not in found else f"{name}-base"
        template = "chat" if first.tokenizer.chat_template else first.data.template
        selected = replace(first, data=replace(first.data, template=template), adapter_name=None)
        found[name] = ServedModel(name, selected, BASE, generation.end_ids(first.tokenizer, base))
    return found
