"""A tokenizer's chat template: what it renders, and what it has a place for.

What a template does is found by rendering short conversations with it, not from the name of its model: a switch for thinking, the
token that ends an answer, whether system turns, tools and their results are rendered.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

from jinja2 import meta, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from hydraft.config.choices import Thinking
from hydraft.data import tool_calls
from hydraft.data.records import Conversation, Turn
from hydraft.data.thinking import Block, block_of
from hydraft.data.tool_calls import CallStyle
from hydraft.errors import ConfigError

SWITCHES = ("enable_thinking", "thinking")
"""Variables that turn thinking on and off: of Qwen3, GLM-4.5, SmolLM3 and Hunyuan; of DeepSeek-V3.1 and Granite."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""The keys of a message for its thoughts: of Qwen3 and GLM-4.5; of newer servers; of gpt-oss."""
USE_PLAIN = 'use a plain template: data.template="{instruction}\\n{input}\\n"'
QUESTION, ANSWER, SYSTEM = "zqQuestionqz", "zqAnswerqz", "zqSystemqz"
TOOL, ARGUMENT, RESULT = "zqToolqz", "zqArgumentqz", "zqResultqz"
ASKED = (Turn("user", QUESTION), Turn("assistant", ANSWER))
CALLED = (
    Turn("user", QUESTION),
    Turn("assistant", "", tool_calls=({"name": TOOL, "arguments": {"key": ARGUMENT}},)),
    Turn("tool", RESULT, name=TOOL),
)
OFFERED = (
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "d",
            "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "d"}}},
        },
    },
)
WITH_AND_WITHOUT = (Conversation(), Conversation(tools=OFFERED))
"""What is rendered to see what a template does. Letters only, so that no template changes them. Some render calls only with tools."""


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: bool) -> None:
        """Read the template, or that for ``tools`` if the tokenizer has several.

        Raises:
            ConfigError: there is none, or it is not a Jinja template.
        """
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ConfigError(f"data.template=chat: this model's tokenizer has no chat template; {USE_PLAIN}")
        try:
            self.source = str(tokenizer.get_chat_template(tools=[{}] if tools else None))
            tree = _compile_jinja_template(self.source).environment.parse(self.source)
        except Exception as error:
            raise ConfigError(f"data.template=chat: this model's chat template cannot be read: {error}") from error
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        """The variables that it reads."""
        attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
        texts = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        self.reasoning_keys = [key for key in REASONING_KEYS if key in attributes | texts]
        """The keys of a message under which it looks for thoughts."""
        self.texts = texts

    def render(
        self,
        turns: Sequence[Turn],
        thinking: Thinking = Thinking.auto,
        asks: bool = False,
        chat: Conversation | None = None,
        style: CallStyle | None = None,
    ) -> str:
        """The text of ``turns``; ``asks``: with what comes before the assistant's next answer. ``chat`` has tools and variables.

        Raises:
            ConfigError: the template rejects them.
        """
        chat = chat or Conversation()
        messages = self._messages(self._with_system(turns), thinking is not Thinking.off, style)
        named = {**self.switched(thinking), **chat.template_variables}
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=[dict(tool) for tool in chat.tools] or None,
                    add_generation_prompt=asks,
                    tokenize=False,
                    **named,
                )
            )
        except Exception as error:  # jinja raises errors that the template's author wrote
            which = f"record {chat.number}" if chat.number else "a record"
            raise ConfigError(f"data.template=chat: this model's chat template rejects {which}: {error}") from error

    def renders(self, turns: Sequence[Turn], *wanted: str, **options: Any) -> bool:
        """Whether the text of ``turns`` has all of the texts ``wanted``, after the question if ``turns`` go on after it with calls."""
        try:
            text = self.render(turns, **options)
        except ConfigError:
            return False
        return all(each in (text if turns is ASKED else text.rpartition(QUESTION)[2]) for each in wanted)

    def switched(self, thinking: Thinking) -> dict[str, Any]:
        """The variables that turn thinking on or off in this template; none for ``auto`` or if it has no such variable."""
        if thinking is Thinking.auto:
            return {}
        found: dict[str, Any] = {name: thinking is Thinking.on for name in SWITCHES if name in self.variables}
        if not found and "reasoning_effort" in self.variables and thinking is Thinking.off and "none" in self.texts:
            return {"reasoning_effort": "none"}
        return found

    def _messages(self, turns: Sequence[Turn], thoughts: bool, style: CallStyle | None) -> list[dict[str, Any]]:
        calling = any(turn.tool_calls or turn.role == "tool" for turn in turns)
        style = style or (self.call_style if calling else None) or CallStyle()
        short: dict[str, str] = {}
        messages = []
        for turn in turns:
            message: dict[str, Any] = {"role": turn.role, "content": turn.text}
            if thoughts and turn.reasoning:
                message |= dict.fromkeys(self.reasoning_keys, turn.reasoning)
            if turn.tool_calls:
                message["tool_calls"] = [tool_calls.called(call, style, short) for call in turn.tool_calls]
                if style.no_content and not turn.text:
                    message["content"] = None
            if turn.role == "tool":
                waiting = turn.tool_call_id or next(
                    iter(short), ""
                )  # without an id, the results are in the order of the calls
                identity = short.pop(waiting, waiting)
                message |= {"tool_call_id": identity} if identity else {}
                message |= {"name": turn.name} if turn.name else {}
            messages.append(message)
        return messages

    @cached_property
    def call_style(self) -> CallStyle | None:
        """How this template wants calls; None if it renders none."""
        for named_ids, short_ids, no_content, as_text in product((False, True), repeat=4):
            style = CallStyle(as_text, no_content, short_ids, named_ids)
            if any(self.renders(CALLED[:2], TOOL, ARGUMENT, style=style, chat=chat) for chat in WITH_AND_WITHOUT):
                return style
        return None

    @cached_property
    def takes_results(self) -> bool:
        """Whether it renders the results of tools."""
        return any(self.renders(CALLED, RESULT, style=self.call_style, chat=chat) for chat in WITH_AND_WITHOUT)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether it renders the tools that may be called."""
        return self.renders(ASKED, TOOL, chat=Conversation(tools=OFFERED))

    def check_tools(self, chat: Conversation) -> None:
        """Refuse a conversation with tools, calls or results that the template does not render.

        Raises:
            ConfigError: the message has the record.
        """
        calls = any(turn.tool_calls for turn in chat.turns)
        results = any(turn.role == "tool" for turn in chat.turns)
        if chat.tools and not self.takes_tools:
            tool_calls.refuse(chat, "tools", "this model's chat template")
        if calls and self.call_style is None:
            tool_calls.refuse(chat, "calls of tools", "this model's chat template")
        if results and not self.takes_results:
            tool_calls.refuse(chat, "results of tools", "this model's chat template")

    def _with_system(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns with the text of a system turn ahead of the question, if the template has no place for it."""
        if len(turns) < 2 or turns[0].role != "system" or self.takes_system:
            return turns
        first, question, *rest = turns
        return [replace(question, content=f"{first.text}\n\n{question.content}"), *rest]

    @cached_property
    def takes_system(self) -> bool:
        """Whether it renders the text of a system turn anywhere."""
        return SYSTEM in self._of_system

    @property
    def system_in_question(self) -> bool:
        """Whether the text of a system turn is rendered as a part of the first question."""
        plain = self.render(ASKED[:1], asks=True)
        text = self._of_system if self.takes_system else ""
        between = ("\n", "\n\n", " ", "")
        return not text or text in [plain.replace(QUESTION, f"{SYSTEM}{gap}{QUESTION}") for gap in between]

    @cached_property
    def _of_system(self) -> str:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
        try:
            return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except Exception:
            return ""

    @cached_property
    def begins(self) -> str:
        """What the template puts before an answer without thoughts, which has a special token in it; empty without one."""
        plain, prompt = (
            self._quietly(ASKED[:1], Thinking.off, False),
            self._quietly(ASKED[:1], Thinking.off, True) + self.empty,
        )
        names = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        candidates = (prompt[len(plain) :] if prompt.startswith(plain) else "", prompt.rpartition(QUESTION)[2])
        return next((text for text in candidates if any(name in text for name in names)), "")

    @cached_property
    def closing(self) -> str:
        """The token with which the template ends an answer; empty if it ends answers with text, or not at all."""
        return self._closing(ASKED, ANSWER)

    @cached_property
    def closings(self) -> tuple[str, ...]:
        """The tokens that end an answer, also one that calls a tool."""
        found = [self.closing, self._closing(CALLED[:2], ARGUMENT) if self.call_style is not None else ""]
        return tuple(dict.fromkeys(token for token in found if token))

    def _closing(self, turns: Sequence[Turn], last: str) -> str:
        try:
            text = self.render(turns)
        except ConfigError:
            return ""
        rest = text[text.rfind(last) + len(last) :] if last in text else ""
        names = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        if last == ANSWER:
            return max((name for name in names if name and rest.lstrip().startswith(name)), key=len, default="")
        return max((name for name in names if name and rest.rstrip().endswith(name)), key=len, default="")

    @cached_property
    def block(self) -> Block:
        """How it writes thoughts, as far as its renderings show."""
        asked = [self._quietly(ASKED[:1], mode, True) for mode in (Thinking.off, Thinking.on, Thinking.auto)]
        answered = self._quietly(ASKED, Thinking.off, False)
        return block_of(self.source, [*asked[:1], answered.partition(ANSWER)[0], *asked[1:]])

    @cached_property
    def empty(self) -> str:
        """The empty thoughts that the template puts before an answer without thoughts but not at the end of the prompt."""
        prompt, answered = self._quietly(ASKED[:1], Thinking.off, True), self._quietly(ASKED, Thinking.off, False)
        before = answered.partition(ANSWER)[0]
        rest = before.removeprefix(prompt)
        return rest if before.startswith(prompt) and self.block.closing in rest else ""

    def _quietly(self, turns: Sequence[Turn], thinking: Thinking, asks: bool) -> str:
        try:
            return self.render(turns, thinking, asks)
        except ConfigError:
            return ""


@lru_cache(maxsize=8)
def _read(tokenizer: PreTrainedTokenizerBase, source: str, tools: bool) -> ChatTemplate:
    return ChatTemplate(tokenizer, tools)


def of(tokenizer: PreTrainedTokenizerBase, tools: bool = False) -> ChatTemplate:
    """The chat template of ``tokenizer``, read once."""
    return _read(tokenizer, repr(tokenizer.chat_template), tools)
