"""A Hub on loopback: what huggingface_hub, transformers and datasets ask of the real one.

Files are served from folders. Large ones (by their ending) are answered as the Hub answers for
LFS: with a redirect to another host, `localhost`, under their SHA-256. Storage by Xet is left out,
so clients download over plain HTTP. Each request is written down, and `Fault`s are put in its way.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

# What the profile `hub` names.
BASE, REFERENCE = "Qwen/Qwen3-0.6B-Base", "banghua/Qwen3-0.6B-SFT"
TRAINEE, DATA = "HuggingFaceTB/SmolLM2-135M", "banghua/DL-SFT-Dataset"
PARTS = {"base": BASE, "reference": REFERENCE, "trainee": TRAINEE}

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
        content = path.read_bytes()
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content)  # as git has it
        return cls(path, len(content), sha1.hexdigest(), hashlib.sha256(content).hexdigest())

    @property
    def large(self) -> bool:
        return self.content.suffix in LARGE

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.sha1


@dataclass
class Request:
    """A request; ``sent`` counts the bytes of the answer's body."""

    method: str
    path: str
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


class Server(ThreadingHTTPServer):
    """Its port may be bound twice: see `Hub`."""

    allow_reuse_port = True
    daemon_threads = True


class Hub:
    """The server. It answers from its start until `down`, and again after `up`.

    A second socket is bound to its port for good and never listens: while the server is away,
    connections are refused, and nobody else is given the port.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, File]]] = {}  # by name, then by hash
        self.main: dict[str, str] = {}  # where the branch of each points
        self.large: dict[str, File] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.place = socket.socket()
        self.place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.place.bind(("127.0.0.1", 0))
        self.port = self.place.getsockname()[1]
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = Server(("127.0.0.1", self.port), handler)
        threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()

    def down(self) -> None:
        """From here on nobody listens at the port."""
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.down()
        try:
            yield
        finally:
            self.up()

    def commit(self, name: str, folder: Path) -> str:
        """Publish what is in a folder, and point the branch to it. A data set's name says so."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): File.of(path) for path in paths}
        sums = "".join(f"{path} {file.sha256}\n" for path, file in files.items())
        commit = hashlib.sha1(f"{name}\n{sums}".encode()).hexdigest()
        self.commits.setdefault(name, {})[commit] = files
        self.large |= {file.sha256: file for file in files.values() if file.large}
        self.main[name] = commit
        return commit

    def published(self, name: str, path: str = "model.safetensors") -> File:
        return self.commits[name][self.main[name]][path]

    @contextmanager
    def damaged(self, file: File, content: bytes, folder: Path) -> Iterator[None]:
        """Serve other bytes in place of a file, and announce the file that was published."""
        whole = file.content
        file.content = folder / f"damaged-{whole.name}"
        file.content.write_bytes(content)
        yield
        file.content = whole

    @property
    def transfers(self) -> list[Request]:
        """The requests that were answered with the content of a file."""
        sent = [r for r in self.requests if r.method == "GET" and r.sent]
        return [r for r in sent if re.search("/resolve/|/stored/", r.path)]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.request_noted = Request(self.command, self.path)
        self.cut: int | None = None
        with self.hub.lock:
            self.hub.requests.append(self.request_noted)
            for fault in self.hub.faults:
                asked = re.fullmatch(fault.method, self.command) and fault.times
                if asked and re.search(fault.pattern, unquote(self.path)):
                    fault.times -= 1
                    fault.first()
                    self.cut = fault.cut
                    if fault.status:
                        return self.answer(fault.status, b"{}", fault.headers)
                    break
        self.route()

    do_HEAD = do_GET

    def route(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path).strip("/")
        if path == "":
            return self.answer(200, b"a Hub")
        if match := re.fullmatch(r"stored/(\w+)", path):
            return self.send_file(self.hub.large[match[1]], {"ETag": f'"{match[1]}"'})
        kind = r"(models|datasets)"
        if match := re.fullmatch(rf"api/{kind}/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.info(*match.groups())
        if match := re.fullmatch(rf"api/{kind}/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            recursive = parse_qs(url.query).get("recursive", [""])[0].lower() in ("true", "1")
            return self.tree(*match.groups(), recursive)
        if match := re.fullmatch(r"(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        self.answer(404, b'{"error": "Not Found"}')

    # --- Repositories ------------------------------------------------------------------------

    def find(self, kind: str | None, name: str, revision: str | None):
        """The commit and its files, or None after an answer that says why not."""
        full = f"datasets/{name}" if kind == "datasets" else name
        if full not in self.hub.commits:  # the Hub tells strangers nothing more
            return self.error(401, "RepoNotFound", "Invalid username or password.")
        commit = self.hub.main[full] if revision in (None, "main") else revision
        if commit not in self.hub.commits[full]:
            return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, self.hub.commits[full][commit]

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
        _, files = found
        start = f"{below}/" if below else ""
        entries: dict[str, dict] = {}
        for path, file in files.items():
            if path.startswith(start):
                folder, slash, _ = path.removeprefix(start).partition("/")
                if slash and not recursive:
                    entries[folder] = {"type": "directory", "path": start + folder, "oid": "0" * 40}
                else:
                    entries[path] = {
                        "type": "file", "path": path, "oid": file.sha1, "size": file.size
                    }  # fmt: skip
                    if file.large:
                        lfs = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
                        entries[path]["lfs"] = lfs
        self.json(list(entries.values()))

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

    def send_file(self, file: File, headers: dict[str, str]) -> None:
        self.answer(200, file.content.read_bytes(), headers)

    # --- Answers -----------------------------------------------------------------------------

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        if commit:
            headers["X-Repo-Commit"] = commit
        self.answer(status, json.dumps({"error": message}).encode(), headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.close_connection = self.close_connection or self.cut is not None
            self.request_noted.sent += len(body[: self.cut])
            self.wfile.write(body[: self.cut])
