"""The models that the server offers by name: each adapter, and their base."""

import copy
import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hydraft.config.choices import Thinking
from hydraft.data import special_tokens
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import prompt_text
from hydraft.errors import ConfigError
from hydraft.infer.load import LoadedModel, LoadedSource
from hydraft.infer.serve.multi_lora import BASE, base_of
from hydraft.infer.serve.parsing import AnswerParser, call_field
from hydraft.infer.serve.prompt_bound import PromptBound
from hydraft.infer.serve.schema import ChatRequest
from hydraft.models import generation


class PromptTooLong(Exception):
    """A prompt has more tokens than there is room for; ``least``: how many it has at least."""

    def __init__(self, least: int) -> None:
        super().__init__(least)
        self.least = least


@dataclass
class ServedModel:
    """A model that requests can name."""

    name: str
    selected: LoadedSource
    adapter: str
    """Its adapter's name in the PeftModel; ``__base__`` for the base."""
    ends: list[int]
    """The tokens that end its answers."""
    bound: PromptBound
    """The least number of tokens of a text."""

    def __post_init__(self) -> None:
        """Copy the tokenizer: one encodes prompts and the other decodes answers, at the same time."""
        self.tokenizer = copy.deepcopy(self.selected.tokenizer)

    def chat(self, body: ChatRequest, room: int) -> list[int]:
        """The prompt ids of a conversation. ``room``: the most tokens that it may have.

        Raises:
            ConfigError: the model's template does not support it.
            PromptTooLong: it has more than ``room`` tokens, as is known before it is tokenised.
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
        special = special_tokens.of(self.selected.tokenizer)
        text = prompt_text(conversation, self.selected.tokenizer, data)
        self._check(self.bound(special.shown(text)), room)
        return special.encode(text)

    @staticmethod
    def _check(least: int, room: int) -> None:
        if least > room:
            raise PromptTooLong(least)

    @cached_property
    def calls(self) -> dict[str, Any] | None:
        """How the model writes calls of tools; None if its template has no place for them."""
        return call_field(self.tokenizer) if self.selected.data.template == "chat" else None

    def parser(self, body: ChatRequest, prompt: list[int]) -> AnswerParser:
        """A parser of one answer."""
        tools, end = body.offered, str(self.tokenizer.decode(prompt[-8:]))
        return AnswerParser(end, tools, self.calls if tools else None, body.parallel_tool_calls is not False)

    def plain(self, prompt: str | list[int], room: int) -> list[int]:
        """The ids of a text without a template; it may contain special tokens. ``room``: as in ``chat``.

        Raises:
            ConfigError: it has a token that the model does not have.
            PromptTooLong: it has more than ``room`` tokens, as is known before it is tokenised.
        """
        self._check(self.bound(prompt) if isinstance(prompt, str) else len(prompt), room)
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
    bounds: dict[bytes, PromptBound] = {}

    def served(name: str, selected: LoadedSource, adapter: str) -> ServedModel:
        backend = getattr(selected.tokenizer, "backend_tokenizer", None)
        same = hashlib.sha256(backend.to_str().encode()).digest() if backend is not None else b""
        bound = bounds[same] = bounds.get(same) or PromptBound(
            selected.tokenizer
        )  # it takes a while, and is mostly shared
        return ServedModel(name, selected, adapter, generation.end_ids(selected.tokenizer, base), bound)

    found = {name: served(name, selected, selected.adapter_name or BASE) for name, selected in loaded.sources.items()}
    first = next(iter(loaded.sources.values()))
    if first.adapter_name is not None:
        name = first.source.base_name or first.source.model.name
        name = re.sub(r"\W+$", "", name) or "base"
        name = name if name not in found else f"{name}-base"
        template = "chat" if first.tokenizer.chat_template else first.data.template
        data = replace(first.data, template=template, thinking=Thinking.auto)
        found[name] = served(name, replace(first, data=data, adapter_name=None), BASE)
    return found
