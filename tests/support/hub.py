"""A hub of models and data sets on this machine: the part of the Hugging Face hub's HTTP API that its clients ask for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse


@contextmanager
def open_hub(root: Path) -> Iterator[Hub]:
    """Serve ``root/models/<owner>/<name>/<revision>/`` and ``root/datasets/...`` until the block ends."""
    hub = Hub(root)
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class Hub:
    """The server, what it was asked, and which repositories it shows to nobody."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.gated: set[str] = set()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def folder(self, kind: str, repository: str, revision: str) -> Path | None:
        """The files of a revision, which is named or the commit that :meth:`commit` computes."""
        base = self.root / kind / repository
        revisions = [*(path for path in base.glob("*") if path.name != "refs"), *base.glob("refs/*/*")]
        return next((f for f in revisions if revision in (f.relative_to(base).as_posix(), self.commit(f))), None)

    @staticmethod
    def commit(folder: Path) -> str:
        """What stands for the commit of a folder's content."""
        found = hashlib.sha1()
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            found.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
        return found.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        place = urlparse(self.path)
        path = unquote(place.path)
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length).decode() if length else ""
        self.hub.asked.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", path)
        if api:
            kind, repository, what, rest = api.groups()
            self._api(kind, repository, what or "revision", rest or "main", sent, parse_qs(place.query))
        elif file:
            self._file("datasets" if file[1] else "models", *file.groups()[1:], body=body)
        else:
            self.hub.unknown.append(f"{self.command} {self.path}")
            self._send(404, b"{}")

    def _api(self, kind: str, repository: str, what: str, rest: str, sent: str, query: dict[str, list[str]]) -> None:
        revision, inner = rest, ""
        if what != "revision":
            found = re.fullmatch(r"(refs/[^/]+/[^/]+|[^/]+)(?:/(.*))?", rest)
            assert found
            revision, inner = found[1], found[2] or ""
        folder = self._find(kind, repository, revision)
        if folder is None:
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if what == "revision":
            names = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
            facts = {"id": repository, "sha": self.hub.commit(folder), "siblings": names}
            self._json({**facts, "private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0})
            return
        entries = [
            {"type": "directory" if path.is_dir() else "file", "path": path.relative_to(folder).as_posix(), "oid": "0"}
            | ({"size": path.stat().st_size} if path.is_file() else {})
            for path in sorted(folder.rglob("*"))
        ]
        if what == "paths-info":
            wanted = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent).get("paths", [])
            self._json([entry for entry in entries if entry["path"] in wanted])
            return
        below = [entry for entry in entries if not inner or str(entry["path"]).startswith(f"{inner}/")]
        if query.get("recursive", ["false"])[0].lower() != "true":
            below = [e for e in below if "/" not in str(e["path"])[len(inner) + bool(inner) :]]
        self._json(below)

    def _file(self, kind: str, repository: str, revision: str, name: str, body: bool) -> None:
        folder = self._find(kind, repository, revision)
        if folder is None:
            return
        file = folder / name
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        marks = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.hub.commit(folder)}
        self._send(200, content, marks, body)

    def _find(self, kind: str, repository: str, revision: str) -> Path | None:
        if repository in self.hub.gated:
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            return None
        folder = self.hub.folder(kind, repository, revision)
        if folder is None:
            is_there = (self.hub.root / kind / repository).is_dir()
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if is_there else "RepoNotFound"})
        return folder

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
