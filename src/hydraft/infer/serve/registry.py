"""The models that the server offers by name: each adapter, and their base."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hydraft.config.choices import Thinking
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError
from hydraft.infer.load import LoadedModel, LoadedSource
from hydraft.infer.serve.multi_lora import BASE, base_of
from hydraft.infer.serve.parsing import AnswerParser, call_field
from hydraft.infer.serve.schema import ChatRequest
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

    def chat(self, body: ChatRequest) -> list[int]:
        """The prompt ids of a conversation.

        Raises:
            ConfigError: the model's template does not support it.
        """
        tools = body.offered
        if tools and self.calls is None:
            raise ConfigError(
                "this model's chat template has no place for tools, or an unknown form of calls: leave out tools"
            )
        data, variables = self.selected.data, dict(body.chat_template_kwargs or {})
        if body.reasoning_effort is not None:
            thinking = Thinking.off if body.reasoning_effort == "none" else Thinking.on
            data, variables = replace(data, thinking=thinking), {"reasoning_effort": body.reasoning_effort, **variables}
        turns = (*body.turns, Turn("assistant", ""))
        conversation = Conversation(turns, tools=tools, template_variables=variables)
        return prompt_ids(conversation, self.selected.tokenizer, data)

    @cached_property
    def calls(self) -> dict[str, Any] | None:
        """How the model writes calls of tools; None if its template has no place for them."""
        return call_field(self.tokenizer) if self.selected.data.template == "chat" else None

    def parser(self, body: ChatRequest, prompt: list[int]) -> AnswerParser:
        """A parser of one answer."""
        tools, end = body.offered, str(self.tokenizer.decode(prompt[-8:]))
        return AnswerParser(end, tools, self.calls if tools else None, body.parallel_tool_calls is not False)

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
        selected = replace(
            first, data=replace(first.data, template=template, thinking=Thinking.auto), adapter_name=None
        )
        found[name] = ServedModel(name, selected, BASE, generation.end_ids(first.tokenizer, base))
    return found
