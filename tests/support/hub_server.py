"""A server of this machine that answers as the Hugging Face hub does, as far as downloads ask: the files of repositories in a folder."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

COMMIT = "0123456789" * 4


def _handler(folder: Path, served: list[str]) -> type[BaseHTTPRequestHandler]:
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._file(body=False)

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[0] != "api":
                self._file(body=True)
            elif not (repository := folder.joinpath(*parts[2:4])).is_dir():
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif parts[4] == "revision":
                self._json({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": []})
            else:
                files = sorted(repository.iterdir())
                self._json([{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _oid(f)} for f in files])

        def _file(self, body: bool) -> None:
            owner, name, _, _, file = self.path.strip("/").split("/")
            place = folder / owner / name / file
            if not place.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if body:
                served.append(file)
            self._send(200, place.read_bytes(), {"ETag": f'"{_oid(place)}"', "X-Repo-Commit": COMMIT}, body)

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *parts: Any) -> None:
            """Not to stderr."""

    return Hub


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def hub(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Within, this process downloads repositories (``owner/name``) of ``folder`` into ``cache``. The files that were served, in order."""
    served: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder, served))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    url, real = f"http://127.0.0.1:{server.server_port}", constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE  # was made from the former
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(real, url))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
