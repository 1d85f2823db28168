"""The FastAPI application of the board: the page, and what it asks for. No torch.

Whatever writes or starts something has a router of its own, which ``build`` takes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from starlette.responses import FileResponse, JSONResponse, Response

from hydraft.board import details, logs, series, sweeps
from hydraft.board.access import OwnPage
from hydraft.board.listing import Listing
from hydraft.board.record import Run
from hydraft.board.roots import Outside, file_in, folder_of
from hydraft.infer.serve import errors
from hydraft.infer.serve.errors import ApiError
from hydraft.infer.serve.middleware import Access, AccessMiddleware

PAGE = Path(str(resources.files("hydraft.board").joinpath("page")))
SHARED = Path(str(resources.files("hydraft.sweep.results").joinpath("page")))
"""Files of the sweep's report that the board's page uses too: the colours and the charts."""

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""plotly inserts styles of its own."""

HEADERS = {"Content-Security-Policy": CSP, "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}  # fmt: skip

MOST_RUNS = 200
"""Runs whose curves are read in one request."""

Ids = Annotated[list[str], Query(max_length=MOST_RUNS)]


@dataclass(frozen=True)
class Board:
    """What the routes need; ``app.state.board`` for those of other routers."""

    listing: Listing

    def run(self, name: str) -> Run:
        """A run by its id.

        Raises:
            ApiError: there is none, or it is not below the board's folders.
        """
        found = self.listing.run(name)
        try:
            folder_of(self.listing.roots, name)
        except Outside:
            found = None if found is None or found.folder.exists() else found  # a job that has not begun has no folder
        if found is None:
            raise ApiError(404, f"There is no run {name!r} below the board's folders.")
        return found


def build(board: Board, access: Access, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The application; ``routers`` act, the routes here only read."""
    app = FastAPI(title="hydraft board", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.board = board
    errors.install(app)
    app.add_middleware(OwnPage, key=access.key)
    app.add_middleware(AccessMiddleware, access=access, count=lambda route, status: None)
    app.include_router(_reading(board))
    for router in routers:
        app.include_router(router)
    _add_page(app)
    return app


def _reading(board: Board) -> APIRouter:
    api = APIRouter(prefix="/api")
    _add_tables(api, board)
    _add_texts(api, board)
    return api


def _add_tables(api: APIRouter, board: Board) -> None:
    @api.get("/board")
    def listed(since: int = 0) -> JSONResponse:
        return JSONResponse(board.listing.changes(since))

    @api.get("/curves")
    def curves(run: Ids, at: Ids) -> JSONResponse:
        """Of each run what was logged after its cursor ``at``."""
        found: dict[str, Any] = {}
        for name, cursor in zip(run, at, strict=False):
            try:
                found[name] = series.part(board.run(name).folder, cursor)
            except ApiError:
                found[name] = None
            except OSError as error:
                found[name] = {"error": error.strerror}
        return JSONResponse(found)

    @api.get("/run")
    def one(run: str) -> JSONResponse:
        return JSONResponse(details.run(board.run(run)))

    @api.get("/configs")
    def configs(run: Ids) -> JSONResponse:
        return JSONResponse(details.configs([board.run(name) for name in run]))

    @api.get("/memory")
    def memory(run: Ids) -> JSONResponse:
        return JSONResponse({name: details.memory(board.run(name)) for name in run})

    @api.get("/sweep")
    def sweep(sweep: str) -> JSONResponse:
        try:
            folder = folder_of(board.listing.roots, sweep)
        except Outside:
            raise ApiError(404, f"There is no sweep {sweep!r} below the board's folders.") from None
        with _readable():
            return JSONResponse(sweeps.report(folder))


def _add_texts(api: APIRouter, board: Board) -> None:
    @api.get("/logs")
    def log_names(run: str) -> JSONResponse:
        return JSONResponse({"logs": details.logs_in(board.run(run).folder)})

    @api.get("/answers")
    def answers(run: Ids, step: int | None = None) -> JSONResponse:
        if not 1 <= len(run) <= 2:
            raise ApiError(400, "Answers are compared of one run or of two.")
        with _readable():
            return JSONResponse(details.side_by_side([board.run(name) for name in run], step))

    @api.get("/log")
    def log(run: str, name: str, at: str = "") -> JSONResponse:
        folder = board.run(run).folder
        file = file_in(folder, name) if name in details.logs_in(folder) else None
        if file is None:
            raise ApiError(404, f"There is no log {name!r} of this run.")
        with _readable():
            return JSONResponse(logs.part(file, at))


@contextmanager
def _readable() -> Iterator[None]:
    """Turns an error of reading into a response."""
    try:
        yield
    except OSError as error:
        raise ApiError(500, f"It cannot be read: {error.strerror}") from None


def _add_page(app: FastAPI) -> None:
    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    @app.get("/page/{name}")
    def asset(name: str) -> Response:
        file = file_in(PAGE, name) or (file_in(SHARED, name) if name in ("charts.js", "colours.css") else None)
        if file is None or file.suffix not in (".js", ".css", ".html", ".svg"):
            raise ApiError(404, f"There is no file {name!r}.")
        return FileResponse(file, headers=HEADERS)

    @app.get("/plotly.js")
    def plotly() -> FileResponse:
        script = resources.files("plotly").joinpath("package_data/plotly.min.js")
        return FileResponse(
            str(script), media_type="text/javascript", headers={**HEADERS, "Cache-Control": "max-age=86400"}
        )
