"""``hydraft trace RUN``: open the trace of ``train.profile`` in the page of Perfetto, which reads it from this machine. No torch."""

import os
import sys
import webbrowser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from hydraft.errors import EXIT_REFUSED, ConfigError
from hydraft.runs import run_folder
from hydraft.runs.profile_files import FOLDER, TRACE

PAGE = "https://ui.perfetto.dev"
"""The page. The trace does not leave this machine: the browser reads it."""

PORT = 9001
"""The only port of 127.0.0.1 that the page may read from (its Content-Security-Policy)."""

USAGE = "takes the folder of a run with train.profile, or last: hydraft trace RUN"


def main(arguments: list[str]) -> int:
    """Serve the trace of a run to the browser until it is read, and open the page if there is a display.

    Returns:
        0, 2 if there is no such trace, or 1 if the port is taken.
    """
    try:
        trace = _find(arguments)
    except ConfigError as error:
        print(f"hydraft trace: {error}", file=sys.stderr)
        return EXIT_REFUSED
    try:
        server = _Server(trace)
    except OSError as error:
        print(
            f"hydraft trace: port {PORT} of 127.0.0.1 is taken ({error.strerror}): open {trace} at {PAGE}",
            file=sys.stderr,
        )
        return 1
    with server:
        page = f"{PAGE}/#!/?url=http://127.0.0.1:{PORT}/{TRACE}"
        print(page, flush=True)
        print(f"waits for a browser to read {trace}; on another machine, first: ssh -L {PORT}:127.0.0.1:{PORT} …; Ctrl-C ends this", file=sys.stderr, flush=True)  # fmt: skip
        if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            webbrowser.open(page)
        try:
            while not server.read:
                server.handle_request()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    return 0


def _find(arguments: list[str]) -> Path:
    """The trace of the run that the command line names.

    Raises:
        ConfigError: there is none.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError(USAGE)
    run = run_folder.find(arguments[0], "RUN") if arguments[0] == "last" else Path(arguments[0])
    trace = run / FOLDER / TRACE
    if not trace.is_file():
        raise ConfigError(f"{run}: has no {FOLDER}/{TRACE}; train.profile=[10,13] writes one")
    return trace


class _Server(HTTPServer):
    """Serves one file to the page."""

    def __init__(self, trace: Path) -> None:
        self.trace, self.read = trace, False
        super().__init__(("127.0.0.1", PORT), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_OPTIONS(self) -> None:
        """A browser asks whether the page may read from this machine."""
        self._answer(204)
        self.end_headers()

    def do_GET(self) -> None:
        """The trace, and nothing else."""
        if self.path != f"/{TRACE}" or self.headers.get("Host") != f"127.0.0.1:{PORT}":
            self.send_error(404)
            return
        content = self.server.trace.read_bytes()
        self._answer(200)
        self.send_header("Content-Type", "application/gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.server.read = True

    def _answer(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Access-Control-Allow-Origin", PAGE)
        self.send_header("Access-Control-Allow-Private-Network", "true")

    def log_message(self, *_: object) -> None:
        """Print nothing."""
