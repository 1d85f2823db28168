"""What the page does to runs and sweeps: start, stop, resume, and the command of each. No torch."""

import datetime
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from hydraft.board import commands, composing
from hydraft.board.app import Board
from hydraft.board.form import Composition, refusal
from hydraft.board.process import HOLDER
from hydraft.board.roots import Outside, Root, folder_of
from hydraft.board.started import Processes, Started
from hydraft.board.stopping import Stops, find
from hydraft.config import printed
from hydraft.errors import ConfigError
from hydraft.infer.serve.errors import ApiError
from hydraft.sweep.holder import NAMES

WAIT = 4.0
"""Seconds in which most refusals of a command come; the page shows later ones too."""

Kind = Literal["run", "sweep"]


class Named(BaseModel, extra="forbid"):
    """A run or a sweep."""

    id: str = Field(max_length=4096)
    kind: Kind = "run"


class ToStop(Named):
    """What to stop, and whether without saving."""

    now: bool = False


class ToResume(Named):
    """What to resume, with settings that may have other values."""

    settings: dict[str, str] = Field(default_factory=dict, max_length=100)
    more: str = Field("", max_length=20_000)
    retry_failed: bool = False
    """Of a sweep: run jobs again that have failed."""


class Actions:
    """What the routes need."""

    def __init__(self, board: Board) -> None:
        self.board, self.processes, self.stops = board, Processes(), Stops()

    def folder(self, named: Named) -> Path:
        """The folder of a run or a sweep.

        Raises:
            ApiError: there is none of that id below the board's folders.
        """
        try:
            folder = folder_of(self.board.listing.roots, named.id)
        except Outside:
            raise ApiError(404, f"There is no {named.kind} {named.id!r} below the board's folders.") from None
        known = self.board.listing.runs if named.kind == "run" else self.board.listing.sweeps
        if named.id not in known and self.processes.of(named.id) is None:
            raise ApiError(404, f"There is no {named.kind} {named.id!r} below the board's folders.")
        return folder

    def start(self, composition: Composition) -> Started:
        """Start a new run or sweep, in a new folder.

        Raises:
            ConfigError: the board does not pass the command on.
        """
        command, roots = composition.typed(), self.board.listing.roots
        composing.check_folders(command, roots)
        setting = "hydra.sweep.dir" if command.sweep else "hydra.run.dir"
        given, name = command.value_of(setting), command.value_of("sweep.name")
        more: list[str] = []
        if given is not None:
            folder = composing.below(given, f"{setting}={given}", roots)
        elif command.sweep and name is not None:
            folder = composing.below(str(Path("multirun") / name), f"sweep.name={name}", roots)
        else:
            folder = _new_folder(roots, "multirun" if command.sweep else "outputs")
            more = shlex.split(printed.override(setting, _typed(folder)))
        kind = "sweep" if command.sweep else "run"
        return self.processes.start([*command.arguments, *more], _id(roots, folder), folder, kind)

    def resume(self, asked: ToResume) -> Started:
        """Go on with a run or a sweep.

        Raises:
            ConfigError: it cannot be resumed from here.
            ApiError: there is none of that id.
        """
        folder = self.folder(asked)
        if self.processes.of(asked.id) is not None:
            raise ConfigError(f"{asked.id}: is running")
        if asked.kind == "sweep":
            arguments = commands.resume_sweep(folder, asked.retry_failed)
        else:
            if (sweep := self.sweep_of(asked.id)) is not None:
                raise ConfigError(f"{asked.id}: is a job of the sweep {sweep}: resume the sweep")
            changed = composing.typed({}, asked.settings, asked.more)
            if changed.sweep:
                raise ConfigError(f"{' '.join(changed.overrides)}: several values are a sweep, and one run is resumed")
            composing.check_folders(changed, self.board.listing.roots)
            arguments = [*shlex.split(printed.override("resume", _typed(folder))), *changed.overrides]
        return self.processes.start(arguments, asked.id, folder, asked.kind)

    def stop(self, asked: ToStop) -> None:
        """Stop a run or a sweep.

        Raises:
            ConfigError: it cannot be stopped from here.
            ApiError: there is none of that id.
        """
        started = self.processes.of(asked.id)
        folder = started.folder if started is not None else self.folder(asked)
        if asked.kind == "run" and started is None and (sweep := self.sweep_of(asked.id)) is not None:
            raise ConfigError(f"{asked.id}: is a job of the sweep {sweep}: stop the sweep")
        run = self.board.listing.runs.get(asked.id)
        launcher = None if run is None else str(run.config.get("cluster.launcher"))
        self.stops.stop(asked.id, find(folder, asked.kind == "sweep", started, launcher), asked.now)

    def sweep_of(self, name: str) -> str | None:
        """The sweep that a run is a job of."""
        run = self.board.listing.runs.get(name)
        return None if run is None else run.sweep


def router(board: Board) -> APIRouter:
    """The routes that act."""
    actions, api = Actions(board), APIRouter(prefix="/api")

    @api.get("/acts")
    def acts() -> JSONResponse:
        """The commands that this board has started, and what is being stopped."""
        return JSONResponse({"started": actions.processes.all(), "stopping": actions.stops.asked()})

    @api.post("/start")
    def start(composition: Composition) -> JSONResponse:
        return _answer(lambda: actions.start(composition))

    @api.post("/resume")
    def resume(asked: ToResume) -> JSONResponse:
        return _answer(lambda: actions.resume(asked))

    @api.post("/stop")
    def stop(asked: ToStop) -> JSONResponse:
        try:
            actions.stop(asked)
        except ConfigError as error:
            return JSONResponse(refusal(str(error)))
        return JSONResponse({"refusal": None, **actions.stops.asked().get(asked.id, {})})

    @api.get("/command")
    def command(id: Annotated[str, Query(max_length=4096)], kind: Kind = "run") -> JSONResponse:
        named = Named(id=id, kind=kind)
        run = board.listing.runs.get(id)
        job = kind == "run" and run is not None and run.sweep is not None
        folder = run.folder if run is not None and job else actions.folder(named)
        return JSONResponse({"command": commands.of_job(folder) if job else commands.of(folder, kind == "sweep")})

    return api


def _answer(act: Callable[[], Started]) -> JSONResponse:
    """Of a command that was started: its folder, or its refusal if that comes soon."""
    try:
        started = act()
    except ConfigError as error:
        return JSONResponse({"started": None, **refusal(str(error))})
    deadline = time.monotonic() + WAIT
    begun = started.folder / (HOLDER if started.kind == "run" else NAMES.replace("*", str(started.process.pid)))
    while started.runs and time.monotonic() < deadline and not begun.exists():
        time.sleep(0.05)
    refused = None if started.runs else started.refusal
    return JSONResponse({"started": started.to_dict(), **(refusal(refused) if refused else {"refusal": None})})


def _new_folder(roots: list[Root], usual: str) -> Path:
    """A folder below the root of that name, or else the first, as conf/train.yaml would name it."""
    root = next((one for one in roots if one.folder.name == usual), roots[0])
    now = datetime.datetime.now()
    return root.folder / now.strftime("%Y-%m-%d") / now.strftime("%H-%M-%S-%f")


def _id(roots: list[Root], folder: Path) -> str:
    root = next(one for one in roots if one.folder in folder.parents)
    return f"{root.label}/{folder.relative_to(root.folder)}"


def _typed(folder: Path) -> str:
    """A folder as one would type it in the working directory."""
    here = Path(os.path.realpath("."))
    return str(folder.relative_to(here)) if here in folder.parents else str(folder)
