"""A hub of models and data sets on this machine: the part of the Hugging Face hub's HTTP API that its clients ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import yaml

TOKEN = "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"


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
    """The server, what it was asked, which repositories it shows to nobody, and which to :data:`TOKEN` alone, who alone may write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        """Files that came by LFS, by their digests."""
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

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = hashlib.sha256(content).hexdigest()
        assert self.path == f"/lfs/{digest}"
        self.hub.large[digest] = content
        self._send(200, b"")

    @property
    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _answer(self, body: bool) -> None:
        place = urlparse(self.path)
        path = unquote(place.path)
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length).decode() if length else ""
        self.hub.asked.append(f"{self.command} {path}")
        written = re.fullmatch(
            r"/api/(repos/create|validate-yaml)|/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/]+)"
            r"|/([^/]+/[^/]+)\.git/info/lfs/objects/batch",
            path,
        )
        if written and self.command == "POST":
            if not self.is_owner:
                self._send(403, json.dumps({"error": "You may not write here."}).encode())
                return
            whole, repository, what, revision, _ = written.groups()
            self._write(whole or what or "lfs", repository, revision, sent)
            return
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

    def _write(self, what: str, repository: str, revision: str, sent: str) -> None:
        """What a client that uploads asks for, in its order."""
        models = self.hub.root / "models"
        asked = json.loads(sent) if what != "commit" else {}
        if what == "repos/create":
            repository = f"{asked['organization']}/{asked['name']}"
            if not (models / repository).is_dir():
                (models / repository / "main").mkdir(parents=True)
                self.hub.private |= (
                    {repository} if asked.get("visibility") == "private" or asked.get("private") else set()
                )
                self._json({"url": f"{self.hub.address}/{repository}"})
            else:
                self._send(
                    409, json.dumps({"error": "there already", "url": f"{self.hub.address}/{repository}"}).encode()
                )
        elif what == "validate-yaml":
            yaml.safe_load(asked["content"].split("---\n")[1])
            self._json({"errors": [], "warnings": []})
        elif what == "branch":
            if (models / repository / revision).is_dir():
                self._send(409, b"{}")
                return
            shutil.copytree(models / repository / "main", models / repository / revision)
            self._json({})
        elif what == "preupload":
            modes = {
                file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in asked["files"]
            }
            self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif what == "lfs":
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}}
                for one in asked["objects"]
            ]
            self._json({"objects": objects})
        else:
            folder = models / repository / revision
            for line in map(json.loads, sent.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    (folder / value["path"]).write_bytes(self.hub.large[value["oid"]])
            commit = self.hub.commit(folder)
            address = f"{self.hub.address}/{repository}/commit/{commit}"
            self._json({"commitUrl": address, "commitOid": commit, "pullRequestUrl": None})

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
            self._json(
                {
                    **facts,
                    "private": repository in self.hub.private,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                }
            )
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
        if repository in self.hub.private and not self.is_owner:  # the hub does not say that there is something
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"})
            return None
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
