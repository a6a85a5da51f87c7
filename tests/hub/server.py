"""A Hub on loopback: what huggingface_hub, transformers and datasets ask of the real one.

Files are served from folders. Large ones (by their ending) are answered as the Hub answers for
LFS: with a redirect to another host, `localhost`, under their SHA-256. Storage by Xet is left out,
so clients download over plain HTTP. Each request is written down, and `Fault`s are put in its way.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

CONTENT = "/resolve/|/stored/"
LARGE = (".safetensors", ".parquet", ".onnx", ".bin")


@dataclass
class File:
    """A file as it is announced (size and sums) and as it is served (content)."""

    content: Path
    size: int
    sha1: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        size = path.stat().st_size
        sha1, sha256 = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()  # as git has it
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha1.update(block)
                sha256.update(block)
        return cls(path, size, sha1.hexdigest(), sha256.hexdigest())

    @property
    def large(self) -> bool:
        return self.content.suffix in LARGE

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.sha1


@dataclass
class Repository:
    """Commits by their hash, and the branches that point to them."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    viewer: dict | None = None  # what the data set viewer says of it


@dataclass
class Request:
    """A request and its answer; ``sent`` counts the bytes of the body."""

    method: str
    path: str
    range: str | None = None
    status: int = 0
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong when ``pattern`` is found in a path, ``times`` times (-1: each time).

    Either another ``status`` with ``headers``, or the connection is ``cut`` after so many bytes
    of the body. ``first`` is called before anything else.
    """

    pattern: str
    method: str = "GET|HEAD"
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    times: int = -1
    first: Callable[[], object] = lambda: None


class Hub:
    """The server. It answers from its start until `down`, and again after `up`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True)
        self.thread.start()

    def down(self) -> None:
        """From here on nobody listens at the port."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def commit(self, name: str, folder: Path, *, branch: str = "main") -> str:
        """Publish what is in a folder, and point a branch to it. A data set's name says so."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): File.of(path) for path in paths}
        sums = "".join(f"{path} {file.sha256}\n" for path, file in files.items())
        commit = hashlib.sha1(f"{name}\n{sums}".encode()).hexdigest()
        repository = self.repositories.setdefault(name, Repository())
        repository.commits[commit] = files
        repository.branches[branch] = commit
        return commit

    def damage(self, name: str, path: str, content: bytes, store: Path) -> None:
        """Serve other bytes in place of a file, and announce the file that was published."""
        repository = self.repositories[name]
        file = repository.commits[repository.branches["main"]][path]
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        file.content = store / Path(path).name
        file.content.write_bytes(content)

    @property
    def transfers(self) -> list[Request]:
        """The requests that were answered with the content of a file."""
        return [
            request
            for request in self.requests
            if request.method == "GET" and request.sent and re.search(CONTENT, request.path)
        ]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.handle_request()

    def do_GET(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def handle_request(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.request_noted = Request(self.command, self.path, self.headers.get("Range"))
        self.cut: int | None = None
        with self.hub.lock:
            self.hub.requests.append(self.request_noted)
            for fault in self.hub.faults:
                if (
                    fault.times
                    and re.fullmatch(fault.method, self.command)
                    and re.search(fault.pattern, unquote(self.path))
                ):
                    fault.times -= 1
                    fault.first()
                    self.cut = fault.cut
                    if fault.status:
                        return self.answer(fault.status, b"{}", fault.headers)
                    break
        self.route()

    def route(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path).strip("/")
        if path == "":
            return self.answer(200, b"a Hub")
        if self.headers["Host"].startswith("datasets-server."):
            return self.viewer(parse_qs(url.query)["dataset"][0])
        if match := re.fullmatch(r"stored/(\w+)", path):
            return self.stored(match[1])
        kind = r"(models|datasets)"
        if match := re.fullmatch(rf"api/{kind}/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.info(*match.groups())
        if match := re.fullmatch(rf"api/{kind}/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            recursive = parse_qs(url.query).get("recursive", [""])[0].lower() in ("true", "1")
            return self.tree(*match.groups(), recursive)
        if match := re.fullmatch(rf"api/{kind}/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            return self.paths_info(*match.groups())
        if match := re.fullmatch(r"(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        self.answer(404, b'{"error": "Not Found"}')

    # --- Repositories ------------------------------------------------------------------------

    def find(self, kind: str | None, name: str, revision: str | None):
        """The commit and its files, or None after an answer that says why not."""
        full = f"datasets/{name}" if kind == "datasets" else name
        repository = self.hub.repositories.get(full)
        if repository is None:  # the Hub tells strangers nothing more
            return self.error(401, "RepoNotFound", "Invalid username or password.")
        commit = repository.branches.get(revision or "main", revision)
        if commit not in repository.commits:
            return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    def info(self, kind: str, name: str, revision: str | None) -> None:
        if found := self.find(kind, name, revision):
            commit, files = found
            self.json(
                {
                    "_id": "0", "id": name, "sha": commit, "private": False, "gated": False,
                    "disabled": False, "downloads": 0, "likes": 0, "tags": [],
                    "siblings": [{"rfilename": path} for path in files],
                }
            )  # fmt: skip

    def tree(self, kind: str, name: str, revision: str, below: str | None, recursive: bool):
        if not (found := self.find(kind, name, revision)):
            return
        commit, files = found
        start = f"{below}/" if below else ""
        entries = {}
        for path, file in files.items():
            if not path.startswith(start):
                continue
            folders = path[len(start) :].split("/")[:-1]
            for depth in range(len(folders) if recursive else min(1, len(folders))):
                folder = start + "/".join(folders[: depth + 1])
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or not folders:
                entries[path] = self.entry(path, file)
        if below and not entries:
            return self.error(404, "EntryNotFound", f"{below} does not exist", commit)
        self.json(list(entries.values()))

    def entry(self, path: str, file: File) -> dict:
        found: dict = {"type": "file", "path": path, "oid": file.sha1, "size": file.size}
        if file.large:
            found["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
        return found

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind, name, revision):
            _, files = found
            asked = parse_qs(self.body.decode()).get("paths", [])
            self.json([self.entry(path, files[path]) for path in asked if path in files])

    def viewer(self, name: str) -> None:
        repository = self.hub.repositories.get(f"datasets/{name}")
        if repository is None or repository.viewer is None:
            return self.answer(404, b'{"error": "Not found."}')
        about = {"dataset_info": repository.viewer, "partial": False, "pending": [], "failed": []}
        self.json(about, {"X-Revision": repository.branches["main"]})

    # --- Files -------------------------------------------------------------------------------

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        if not (found := self.find(kind, name, revision)):
            return
        commit, files = found
        if path not in files:
            return self.error(404, "EntryNotFound", f"{path} does not exist", commit)
        file = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'}
        if not file.large:
            return self.send_file(file, headers)
        headers |= {
            "X-Linked-Etag": f'"{file.sha256}"',
            "X-Linked-Size": str(file.size),
            "Location": f"http://localhost:{self.hub.port}/stored/{file.sha256}",
        }
        self.answer(302, b"", headers)

    def stored(self, sha256: str) -> None:
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for file in files.values():
                    if file.sha256 == sha256:
                        return self.send_file(file, {"ETag": f'"{sha256}"'})
        self.answer(404, b"")

    def send_file(self, file: File, headers: dict[str, str]) -> None:
        size, start = file.content.stat().st_size, 0
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.begin(status, size - start, {"Accept-Ranges": "bytes", **headers})
        if self.command == "HEAD":
            return
        left = size - start if self.cut is None else min(self.cut, size - start)
        with file.content.open("rb") as stream:
            stream.seek(start)
            while left and (block := stream.read(min(left, 1 << 20))):
                self.write(block)
                left -= len(block)
        if self.cut is not None:
            self.close_connection = True

    # --- Answers -----------------------------------------------------------------------------

    def json(self, value: object, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json", **(headers or {})}
        self.answer(200, json.dumps(value).encode(), headers)

    def error(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        if commit:
            headers["X-Repo-Commit"] = commit
        self.answer(status, json.dumps({"error": message}).encode(), headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.begin(status, len(body), headers or {})
        if self.command != "HEAD":
            self.write(body)

    def begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.request_noted.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def write(self, block: bytes) -> None:
        self.request_noted.sent += len(block)
        self.wfile.write(block)
