"""``mode=chat``: a conversation in the terminal, edited with prompt_toolkit and streamed."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from transformers import set_seed

from hydraft.config.bounds import LARGEST_SEED
from hydraft.config.infer import InferConfig
from hydraft.data.reading.row import is_broken
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError
from hydraft.infer.generate import Stream, answer
from hydraft.infer.load import LoadedModel, load
from hydraft.infer.source import Source
from hydraft.models import generation
from hydraft.system import line_file

HELP = """\
/reset           start a new conversation; the system turn stays
/system TEXT     start a new conversation with this system turn; without TEXT, with none
/adapter NAME    switch to another adapter; without NAME, list them
/save FILE       append the conversation to a .jsonl file, as a record that train.py reads
/help            print this help
/exit            exit, like Ctrl-D
Enter sends, Alt-Enter (or Esc, Enter) inserts a newline, Ctrl-C stops an answer."""


class Chat:
    """A conversation, independent of the terminal."""

    def __init__(self, loaded: LoadedModel, options: InferConfig, out: TextIO) -> None:
        self.loaded = loaded
        self.options = options
        self.out = out
        self.system = options.system
        self.selected = loaded.select(options.adapter)
        self.turns: list[Turn] = []
        """The turns of user and assistant, without the system turn."""
        self.stopped = False

    def write(self, text: str) -> None:
        """Print a line."""
        print(text, file=self.out, flush=True)

    def take(self, line: str) -> bool:
        """Answer a line, or run its command.

        Returns:
            False if it ends the chat.
        """
        text = line.strip()
        if not text:
            return True
        if is_broken(text):  # prompt_toolkit reads bytes that are not UTF-8 as Python does
            self.write("this is not UTF-8 text: it is left out")
            return True
        if not text.startswith("/"):
            self._answer(text)
            return True
        name, _, rest = text[1:].partition(" ")
        command = getattr(self, f"_do_{name}", None)
        if name == "exit":
            return False
        if command is None:
            self.write(f"/{name}: unknown command; /help lists them")
        else:
            command(rest.strip())
        return True

    def _answer(self, question: str) -> None:
        turns = [*self.turns, Turn("user", question)]
        prompt = self._prompt(turns)
        while len(turns) > 1 and not self._fits(prompt):
            turns = turns[2:]
            prompt = self._prompt(turns)
        if not self._fits(prompt):
            self.write(
                f"the prompt has {len(prompt):,} tokens, which do not fit the context with an answer of {self.options.max_new_tokens:,}"
            )
            return
        if dropped := (len(self.turns) + 1 - len(turns)) // 2:
            self.write(f"(the conversation is longer than the context: its first {dropped} questions are left out)")
        set_seed((self.options.seed + len(turns) // 2) % (LARGEST_SEED + 1))
        self.stopped = False
        tokenizer = self.selected.tokenizer
        with self._interruptible():
            ids = answer(
                self.loaded,
                self.selected,
                prompt,
                self.options,
                Stream(tokenizer, self.out, prompt),
                lambda: self.stopped,
            )
        read = generation.read_answer(tokenizer, prompt, ids)
        self.turns = [*turns, Turn("assistant", read.text, reasoning=read.thoughts)]

    def _prompt(self, turns: list[Turn]) -> list[int]:
        ahead = [Turn("system", self.system)] if self.system else []
        said = [replace(turn, reasoning="") for turn in turns]  # thoughts are not part of a conversation's history
        conversation = Conversation((*ahead, *said, Turn("assistant", "")))
        return prompt_ids(conversation, self.selected.tokenizer, self.selected.data)

    def _fits(self, prompt: list[int]) -> bool:
        limit = getattr(self.loaded.model.config, "max_position_embeddings", None)
        return limit is None or len(prompt) + self.options.max_new_tokens <= limit

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the answer after its next token; a second Ctrl-C ends the chat."""

        def stop(*_: Any) -> None:
            if self.stopped:
                raise KeyboardInterrupt
            self.stopped = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _do_help(self, _: str) -> None:
        self.write(HELP)

    def _do_reset(self, _: str) -> None:
        self.turns = []
        self.write("a new conversation")

    def _do_system(self, text: str) -> None:
        self.system, self.turns = text or None, []
        self.write(
            f"a new conversation, with the system turn: {text}" if text else "a new conversation, without a system turn"
        )

    def _do_adapter(self, name: str) -> None:
        if not name:
            self.write(", ".join(self.loaded.sources))
            return
        try:
            self.selected = self.loaded.select(name)
        except ConfigError as error:
            self.write(str(error))
            return
        self.write(f"now using {name}")

    def _do_save(self, name: str) -> None:
        file = Path(name).expanduser()
        if file.suffix != ".jsonl":
            self.write("/save FILE: the name must end in .jsonl")
        elif not self.turns:
            self.write("the conversation is empty")
        else:
            ahead = [Turn("system", self.system)] if self.system else []
            record = {"messages": [_message(turn) for turn in [*ahead, *self.turns]]}
            try:
                line_file.append_text(file, json.dumps(record, ensure_ascii=False))
            except OSError as error:
                self.write(f"{file}: {error.strerror}")
            else:
                self.write(f"{file}: {len(self.turns) // 2} questions and answers added")


def run(sources: list[Source], options: InferConfig) -> None:
    """Chat in the terminal until /exit or Ctrl-D."""
    chat = Chat(load(sources, options), options, sys.stdout)
    chat.write(f"{chat.selected.source.name}: /help lists the commands")
    session: PromptSession[str] = PromptSession(multiline=True, key_bindings=_keys(), prompt_continuation="  ")
    while True:
        try:
            if not chat.take(session.prompt("> ")):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            chat.write("(Ctrl-D or /exit exits)")


def _message(turn: Turn) -> dict[str, str]:
    thoughts = {"reasoning_content": turn.reasoning} if turn.reasoning else {}
    return {"role": turn.role, "content": turn.content, **thoughts}


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _break(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
