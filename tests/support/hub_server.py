"""A server of this machine that answers as the Hugging Face hub does, as far as downloads and uploads ask: the files of repositories in a
folder. An upload writes there, and large files go by Git LFS."""

import base64
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
TOKEN = "hf_abcdefghijklmnopqrst"
VISIBILITY = ".visibility"
"""In the folder of a repository that was made here: ``private`` or ``public``."""
LARGE = (".safetensors", ".gguf")
"""Files that go by Git LFS."""


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
            elif len(parts) == 4 or parts[4] == "revision":
                self._json({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": []})
            else:
                files = sorted(repository.iterdir())
                self._json([{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _oid(f)} for f in files])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = self.path.partition("?")[0].strip("/")
            served.append(f"POST {path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(401, b'{"error": "Invalid username or password."}', {})
            elif path == "api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / VISIBILITY).write_text(
                    "private" if asked.get("visibility") == "private" or asked.get("private") else "public"
                )
                self._json({"url": f"http://{self.headers['Host']}/{name}"})
            elif path == "api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif path.endswith("/objects/batch"):
                self._json(
                    {
                        "objects": [
                            self._lfs(path.removesuffix(".git/info/lfs/objects/batch"), one)
                            for one in json.loads(body)["objects"]
                        ]
                    }
                )
            elif "/preupload/" in path:
                modes = [
                    (one["path"], "lfs" if one["path"].endswith(LARGE) else "regular")
                    for one in json.loads(body)["files"]
                ]
                self._json(
                    {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]}
                )
            else:
                self._commit(folder.joinpath(*path.split("/")[2:4]), body.decode())

        def _lfs(self, repository: str, asked: dict[str, Any]) -> dict[str, Any]:
            """Where to send a large file; nowhere if it is there."""
            place = f"{repository}/lfs-{asked['oid']}"
            actions = {"upload": {"href": f"http://{self.headers['Host']}/{place}"}}
            return asked if (folder / place).is_file() else {**asked, "actions": actions}

        def do_PUT(self) -> None:
            served.append(f"PUT {self.path}")
            (folder / self.path.strip("/")).write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(200, b"", {})

        def _commit(self, repository: Path, lines: str) -> None:
            for line in map(json.loads, lines.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    (repository / value["path"]).write_bytes(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    (repository / value["path"]).write_bytes((repository / f"lfs-{value['oid']}").read_bytes())
            self._json(
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"http://{self.headers['Host']}/x/y/commit/{COMMIT}",
                }
            )

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
