"""What the form for a new run is made of, and the plan of what is typed into it. No torch."""

from functools import cache
from typing import Any

import yaml
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from hydraft.board import composing
from hydraft.board.app import Board
from hydraft.board.planner import Planner, Superseded
from hydraft.config import groups, reference
from hydraft.config.markdown import TRANSLATIONS
from hydraft.errors import ConfigError
from hydraft.system.redaction import redact_line, redact_text

USUAL = (
    "model.size", "model.path", "data.train", "data.eval", "data.max_length", "train.epochs", "train.max_steps",
    "train.learning_rate", "train.micro_batch_size", "train.gradient_accumulation_steps", "train.eval_every", "lora.r",
    "lora.alpha", "lora.dropout", "seed",
)  # fmt: skip
"""Settings that are shown before one is searched for."""

LEFT_OUT = ("mode", "resume", "sweep.resume")
LONGEST = 20_000


class Composition(BaseModel, extra="forbid"):
    """What is in the form."""

    groups: dict[str, str] = Field(default_factory=dict, max_length=100)
    """By group, the option that was chosen instead of the default one."""
    settings: dict[str, str] = Field(default_factory=dict, max_length=1000)
    """By setting, what was typed."""
    more: str = Field("", max_length=LONGEST)
    """Further overrides, as one line of a shell."""

    def typed(self) -> composing.Typed:
        """The command line.

        Raises:
            ConfigError: it has something that the board does not pass on.
        """
        return composing.typed(self.groups, self.settings, self.more)


class Asked(Composition):
    """A composition, and the page that has it."""

    page: str = Field("", max_length=64)


def router(board: Board, planner: Planner) -> APIRouter:
    """The routes of the form."""
    api = APIRouter(prefix="/api")

    @api.get("/form")
    def form() -> JSONResponse:
        planner.warm()
        return JSONResponse(definition())

    @api.post("/plan")
    def plan(asked: Asked) -> JSONResponse:
        """The plan, or the refusal, of what is typed."""
        try:
            command = asked.typed()
            line = {"command": redact_line(command.line), "sweep": command.sweep}
        except ConfigError as error:
            return JSONResponse({"command": None, "sweep": False, **refusal(str(error))})
        try:
            composing.check_folders(command, board.listing.roots)
            found = planner.plan(command.arguments, asked.page)
        except ConfigError as error:
            return JSONResponse({**line, **refusal(str(error))})
        except Superseded:
            return JSONResponse({"superseded": True})
        return JSONResponse({**line, **found, **(refusal(found["error"]) if found["code"] else {"refusal": None})})

    return api


def refusal(text: str) -> dict[str, Any]:
    """A refusal and the settings that it is about."""
    text = redact_text(text)
    return {"refusal": text, "fields": composing.fields_of(text)}


@cache
def definition() -> dict[str, Any]:
    """Groups with their options, and every setting of train.py, with texts in both languages."""
    chinese = _chinese()
    options = groups.groups()
    settings = [one for section in reference.sections("train") for one in section.settings]
    found = reference.option_defaults("train")
    return {
        "groups": [
            {
                "name": group,
                "default": default,
                "options": [_option(group, option, chinese) for option in options[group]],
                "meaning": _texts(_section_meanings().get(group, ""), group, chinese),
            }
            for group, default in groups.defaults("train").items()
            if group in options
        ],
        "settings": [
            {
                "name": one.name, "type": one.type, "default": found[one.name][0] if one.name in found else one.default,
                "unit": _texts(one.unit, one.unit, chinese), "choices": one.choices,
                "allowed": _texts(one.symbols or one.bounds, one.symbols or one.bounds, chinese),
                "meaning": _texts(one.meaning, one.name, chinese),
            }
            for one in settings
            if one.name not in LEFT_OUT and ".<name>" not in one.name and not (one.name.startswith("hydra") and not composing.ALLOWED.fullmatch(one.name))
        ],
        "usual": [name for name in USUAL if any(one.name == name for one in settings)],
    }  # fmt: skip


def _option(group: str, option: str, chinese: dict[str, str]) -> dict[str, Any]:
    try:
        summary = groups.summary(group, option)
    except StopIteration:  # one's own, without a comment
        summary = ""
    sizes = dict.fromkeys(
        name.removeprefix("model.sizes.").rpartition(".")[0]
        for name in groups.values(group, option)
        if name.startswith("model.sizes.")
    )
    return {"name": option, "summary": _texts(summary, f"{group}={option}", chinese), "sizes": list(sizes)}


def _section_meanings() -> dict[str, str]:
    return {section.name: section.meaning for section in reference.sections("train")}


def _texts(english: str, key: str, chinese: dict[str, str]) -> dict[str, str]:
    """A text in both languages, without the marks of code."""
    both = {"en": english, "zh": chinese.get(key, english)}
    return {language: text.replace("``", "").replace("`", "") for language, text in both.items()}


def _chinese() -> dict[str, str]:
    """The Chinese texts of docs/zh/settings.yaml; none where the project's docs are not installed."""
    try:
        known = yaml.safe_load(TRANSLATIONS.read_text(encoding="utf-8"))
    except OSError:
        return {}
    return {
        str(key): str(text) for part in ("options", "texts", "settings") for key, text in known.get(part, {}).items()
    }
