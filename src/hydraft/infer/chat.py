"""A talk in the terminal: edited with prompt_toolkit, answered as the tokens come, kept turn by turn."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from transformers import set_seed

from hydraft.config.infer import InferConfig
from hydraft.data.formats import Conversation, Turn
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError
from hydraft.infer.generate import Stream, answer, decoded
from hydraft.infer.load import Loaded, load
from hydraft.infer.source import Source

HELP = """\
/reset           forget the talk; the system turn stays
/system TEXT     a system turn from now on, which begins a new talk; without TEXT, none
/adapter NAME    let another adapter answer; without NAME, list them
/save FILE       add the talk to a .jsonl file, as a record that train.py reads
/help            this
/exit            end; so does Ctrl-D
Enter sends, Alt-Enter (or Esc, Enter) begins a new line, Ctrl-C stops an answer."""


class Chat:
    """A talk, without its terminal."""

    def __init__(self, loaded: Loaded, options: InferConfig, out: TextIO) -> None:
        self.loaded = loaded
        self.options = options
        self.out = out
        self.system = options.system
        self.speaker = loaded.use(options.adapter)
        self.turns: list[Turn] = []
        """Questions and answers in turn, without the system's."""
        self.stopped = False

    def say(self, text: str) -> None:
        """A line for the person."""
        print(text, file=self.out, flush=True)

    def take(self, line: str) -> bool:
        """Answer a line or do what it asks for.

        Returns:
            False if that ends the talk.
        """
        text = line.strip()
        if not text:
            return True
        if not text.startswith("/"):
            self._answer(text)
            return True
        name, _, rest = text[1:].partition(" ")
        command = getattr(self, f"_do_{name}", None)
        if name == "exit":
            return False
        if command is None:
            self.say(f"/{name}: no such command; /help lists them")
        else:
            command(rest.strip())
        return True

    def _answer(self, question: str) -> None:
        asked = [*self.turns, Turn("user", question)]
        prompt = self._prompt(asked)
        while len(asked) > 1 and not self._fits(prompt):
            asked = asked[2:]
            prompt = self._prompt(asked)
        if not self._fits(prompt):
            self.say(
                f"that is {len(prompt):,} tokens, more than the model takes beside an answer of {self.options.max_new_tokens:,}"
            )
            return
        if forgotten := (len(self.turns) + 1 - len(asked)) // 2:
            self.say(f"(the talk is longer than the model takes: its first {forgotten} questions are forgotten)")
        set_seed(self.options.seed + len(asked) // 2)
        self.stopped = False
        tokenizer = self.speaker.tokenizer
        with self._interruptible():
            ids = answer(
                self.loaded, self.speaker, prompt, self.options, Stream(tokenizer, self.out), lambda: self.stopped
            )
        self.turns = [*asked, Turn("assistant", decoded(tokenizer, ids))]

    def _prompt(self, asked: list[Turn]) -> list[int]:
        ahead = [Turn("system", self.system)] if self.system else []
        conversation = Conversation((*ahead, *asked, Turn("assistant", "")))
        return prompt_ids(conversation, self.speaker.tokenizer, self.speaker.data)

    def _fits(self, prompt: list[int]) -> bool:
        limit = getattr(self.loaded.model.config, "max_position_embeddings", None)
        return limit is None or len(prompt) + self.options.max_new_tokens <= limit

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the answer after its next token; a second one ends the talk."""

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
        self.say(HELP)

    def _do_reset(self, _: str) -> None:
        self.turns = []
        self.say("a new talk")

    def _do_system(self, text: str) -> None:
        self.system, self.turns = text or None, []
        self.say(f"a new talk, with the system turn: {text}" if text else "a new talk, without a system turn")

    def _do_adapter(self, name: str) -> None:
        if not name:
            self.say(", ".join(self.loaded.speakers))
            return
        try:
            self.speaker = self.loaded.use(name)
        except ConfigError as error:
            self.say(str(error))
            return
        self.say(f"{name} answers from now on")

    def _do_save(self, name: str) -> None:
        file = Path(name).expanduser()
        if file.suffix != ".jsonl":
            self.say("/save FILE: name a file that ends in .jsonl")
        elif not self.turns:
            self.say("nothing was said yet")
        else:
            ahead = [Turn("system", self.system)] if self.system else []
            record = {"messages": [{"role": turn.role, "content": turn.content} for turn in [*ahead, *self.turns]]}
            try:
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            except OSError as error:
                self.say(f"{file}: {error.strerror}")
            else:
                self.say(f"{file}: {len(self.turns) // 2} questions and answers added")


def run(sources: list[Source], options: InferConfig) -> None:
    """mode=chat."""
    chat = Chat(load(sources, options), options, sys.stdout)
    chat.say(f"{chat.speaker.source.name}: /help says what you can do")
    session: PromptSession[str] = PromptSession(multiline=True, key_bindings=_keys(), prompt_continuation="  ")
    while True:
        try:
            if not chat.take(session.prompt("> ")):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            chat.say("(Ctrl-D or /exit ends)")


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _break(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
