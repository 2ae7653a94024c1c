"""A Hugging Face hub on this machine, as far as downloading speaks with it.

What is asked and answered is written down in https://huggingface.co/docs/hub/api and, for the headers, in the
documentation of huggingface_hub's `get_hf_file_metadata` and `hf_raise_for_status`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_good"
"""Opens private and gated repositories."""
OTHER_TOKEN = "hf_other"
"""A valid one of somebody who may see neither."""
_MEGABYTE = 2**20


@dataclass
class Repository:
    """Files by revision; `main` is the one that is asked for when none is."""

    revisions: dict[str, dict[str, bytes]]
    private: bool = False
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit that a branch or tag names, or that is named by itself."""
        commits = {name: _commit(files) for name, files in self.all()}
        return commits.get(revision, revision if revision in commits.values() else None)

    def files(self, commit: str) -> dict[str, bytes]:
        return next(files for name, files in self.all() if self.commit(name) == commit)

    def all(self) -> list[tuple[str, dict[str, bytes]]]:
        return list(self.revisions.items())


@dataclass
class Hub:
    """The server's repositories by name, and what was asked of it."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method, path and range of each request."""
    cuts: dict[str, int] = field(default_factory=dict)
    """Bytes of a file after which its connection breaks, once."""
    pause: float = 0.0
    """Seconds between two megabytes of a file."""
    status: int | None = None
    """What everything is answered with, when the hub is ill."""

    def add(self, name: str, files: dict[str, bytes] | Path, revision: str = "main", **options: bool) -> Repository:
        """Publish files, or all those of a directory."""
        if isinstance(files, Path):
            paths = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault(name, Repository({}, **options))
        repository.revisions[revision] = files
        return repository

    def fetched(self) -> set[str]:
        """Paths in their repositories of the files that were asked for."""
        got = (request.split()[1] for request in self.requests if request.startswith("GET"))
        return {unquote(path.split("/", 5)[5]) for path in got if "/resolve/" in path}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub without repositories on a free port."""
    hub = Hub("")

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if self.hub.status is not None:
            self._refuse(self.hub.status, "", "out of order")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            self._describe(match[1], match[2], match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._refuse(404, "", "no such route")

    def _describe(self, name: str, what: str | None, revision: str) -> None:
        found = self._repository(name, revision)
        if found is None:
            return
        files, commit = found
        if what == "tree":
            self._json([_entry(path, content) for path, content in files.items()])
        else:
            self._json(
                {"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
            )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._repository(name, revision)
        if found is None:
            return
        files, commit = found
        repository = self.hub.repositories[name]
        if repository.gated and self._token() != TOKEN:
            self._refuse(403 if self._token() else 401, "GatedRepo", f"Access to model {name} is restricted.")
        elif path not in files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._file(path, files[path], commit)

    def _file(self, path: str, content: bytes, commit: str) -> None:
        start = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_blob(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if not start and path in self.hub.cuts:
            self.wfile.write(content[: self.hub.cuts.pop(path)])
            self.close_connection = True
            return
        with suppress(ConnectionError):  # whoever downloads may go
            for place in range(start, len(content), _MEGABYTE):
                self.wfile.write(content[place : place + _MEGABYTE])
                time.sleep(self.hub.pause)

    def _repository(self, name: str, revision: str) -> tuple[dict[str, bytes], str] | None:
        """The files and commit of a revision, or nothing when the request has been refused."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self._token() != TOKEN):
            # The hub does not tell strangers what there is.
            self._refuse(404 if self._token() else 401, "RepoNotFound", "Repository not found")
            return None
        commit = repository.commit(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository.files(commit), commit

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message} if code else {})

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


def _blob(content: bytes) -> str:
    """A file's name in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1("".join(path + _blob(content) for path, content in sorted(files.items())).encode()).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
