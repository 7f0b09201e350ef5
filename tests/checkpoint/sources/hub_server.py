"""A Hub on loopback: the routes that huggingface_hub's client uses, a second host for large files, and faults on demand."""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

TOKEN = "hf_secret"
LARGE = (".safetensors", ".gguf", ".bin")


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a kind: `list`, `api`, `resolve` or `storage`.

    `status` is answered instead of content. `cut` closes the connection after so many bytes of the body, `short` promises
    (and sends) only so many bytes of the range, `whole` ignores the range, `shift` answers with another range, `gzip`
    claims an encoding, `slow` waits so many seconds in the middle of the body.
    """

    kind: str
    times: int = 1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    short: int | None = None
    whole: bool = False
    shift: int = 0
    gzip: bool = False
    slow: float = 0.0


@dataclass
class Request:
    """One request that the server has seen; `sent` counts the bytes of the body."""

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


@dataclass
class Repository:
    """Branches, and the files of each commit."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))
    listed: dict[str, Any] = field(default_factory=dict)
    """What a listing says beside the commit: tags, pipeline_tag, safetensors, cardData, ..."""


class Hub:
    """The state of both hosts; what tests look at and change."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.waits: list[float] = []
        self.signature = "1"  # addresses with another one have expired
        self.endpoint = ""
        self.storage = ""
        self.lock = threading.Lock()
        self.newest = datetime.fromtimestamp(0, UTC)
        self.after_page: Callable[[int], None] = lambda _: None  # called with the number of the page that was answered

    def commit(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit to a repository and return its hash."""
        repository = self.repositories.setdefault(name, Repository())
        content = repr(sorted(files.items())) + repository.branches.get(branch, "")
        commit = hashlib.sha1(content.encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        repository.modified = max(datetime.now(UTC), self.newest + timedelta(milliseconds=1))
        self.newest = repository.modified
        return commit

    def rename(self, name: str, new: str) -> None:
        """Give a repository another name; requests for the old one are redirected."""
        with self.lock:
            self.repositories[new] = self.repositories.pop(name)
            self.renamed[name] = new

    def delete(self, name: str) -> None:
        """Remove a repository."""
        with self.lock:
            del self.repositories[name]

    def seen(self, kind: str = "", method: str = "") -> list[Request]:
        """The requests of a kind and a method so far."""
        return [one for one in self.requests if kind in ("", one.kind) and method in ("", one.method)]

    def sent(self) -> int:
        """How many bytes of bodies have been sent."""
        return sum(one.sent for one in self.requests)

    def fault(self, kind: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.kind == kind and fault.times:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def serve() -> Iterator[Hub]:
    """Run both hosts until the block ends."""
    hub = Hub()
    servers = []
    for handler, host in ((_HubHandler, "127.0.0.1"), (_StorageHandler, "localhost")):
        server = _Server(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
        servers.append((server, f"http://{host}:{server.server_address[1]}"))
    hub.endpoint, hub.storage = (address for _, address in servers)
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        for server, _ in servers
    ]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, _ in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the client may close a connection at any time
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    record: Request

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def start(self, kind: str) -> Fault | None:
        self.record = Request(
            kind, self.command, self.path, {key.lower(): value for key, value in self.headers.items()}
        )
        self.hub.requests.append(self.record)
        return self.hub.fault(kind)

    def answer(
        self, status: int, headers: Mapping[str, str], body: bytes, *, cut: int | None = None, slow: float = 0
    ) -> None:
        self.record.status = status
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = body if cut is None else body[:cut]
        half = len(body) // 2 if slow else len(body)
        try:
            for part in (body[:half], body[half:]):
                self.record.sent += len(part)  # before the client can see them: tests count when they have the last
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(slow)
                slow = 0
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if cut is not None:
            self.close_connection = True

    def error(self, status: int, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        extra = {"X-Error-Code": code, "X-Error-Message": f"{code} \x1b[31mred"} if code else {}
        self.answer(status, {**extra, **(headers or {})}, b'{"error": "no"}')

    def content(self, body: bytes, headers: Mapping[str, str], fault: Fault | None) -> None:
        """Answer with a file or the range of it that was asked for, played with the fault."""
        fault = fault or Fault(kind="")
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        extra = {"Accept-Ranges": "bytes", **headers, **({"Content-Encoding": "gzip"} if fault.gzip else {})}
        if not wanted or fault.whole:
            self.answer(200, extra, body, cut=fault.cut, slow=fault.slow)
            return
        first, _, last = wanted.partition("-")
        start, end = int(first) + fault.shift, min(int(last) + fault.shift + 1, len(body))
        if start >= len(body):
            self.answer(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            return
        if fault.short is not None:
            # The headers promise the range, and the length admits that less is there.
            extra["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
            self.answer(206, extra, body[start : start + fault.short])
            return
        extra["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        self.answer(206, extra, body[start:end], cut=fault.cut, slow=fault.slow)


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        if path == "api/models":
            self.list()
            return
        kind = "api" if path.startswith("api/") else "resolve"
        fault = self.start(kind)
        if fault is not None and fault.status:
            self.answer(fault.status, fault.headers, fault.body)
            return
        name, _, rest = path.removeprefix("api/models/").partition("/")
        if name not in self.hub.repositories and name not in self.hub.renamed:
            second, _, rest = rest.partition("/")
            name = f"{name}/{second}"
        if name in self.hub.renamed:
            self.answer(307, {"Location": self.path.replace(name, self.hub.renamed[name])}, b"")
            return
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            self.error(404 if known else 401, "RepoNotFound")
            return
        verb, _, rest = rest.partition("/")
        revision, file = (unquote(part) for part in rest.split("/", 1)) if "/" in rest else (unquote(rest), "")
        revision = revision or "main"
        commit = repository.branches.get(revision, revision)
        matching = [one for one in repository.commits if len(commit) >= 7 and one.startswith(commit)]
        if not matching:
            self.error(404, "RevisionNotFound")
            return
        if verb == "resolve" and repository.gated and not known:
            self.error(401 if "Authorization" not in self.headers else 403, "GatedRepo")
            return
        files = repository.commits[matching[0]]
        if kind == "api":
            answer = _tree(files) if verb == "tree" else _info(name, matching[0], files)
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())
        elif file not in files:
            self.error(404, "EntryNotFound", {"X-Repo-Commit": matching[0]})
        else:
            self.resolve(files[file], file, matching[0], fault)

    def list(self) -> None:
        """Answer with a page of models, the last change first; the cursor is the number of models before it, as pages shift."""
        fault = self.start("list")
        if fault is not None and fault.status:
            self.answer(fault.status, fault.headers, fault.body)
            return
        asked = parse_qs(urlsplit(self.path).query)
        with self.hub.lock:
            found = [
                (name, one, one.branches["main"])
                for name, one in self.hub.repositories.items()
                if "main" in one.branches and not one.private and _matches(name, one, asked)
            ]
        found.sort(key=lambda entry: entry[1].modified, reverse=True)
        first, size = int(asked.get("cursor", ["0"])[0]), int(asked["limit"][0])
        page = [_entry(*entry) for entry in found[first : first + size]]
        headers = {"Content-Type": "application/json"}
        if first + size < len(found):
            query = urlencode({**asked, "cursor": [str(first + size)]}, doseq=True)
            headers["Link"] = f'<{self.hub.endpoint}/api/models?{query}>; rel="next"'
        self.answer(200, headers, json.dumps(page).encode(), cut=fault.cut if fault is not None else None)
        self.hub.after_page(first // size)

    def resolve(self, body: bytes, file: str, commit: str, fault: Fault | None) -> None:
        digest = _digest(body)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        if not file.endswith(LARGE):
            self.content(body, headers, fault)
            return
        location = f"{self.hub.storage}/{commit}/{quote(file)}?signature={self.hub.signature}"
        linked = {"X-Linked-Size": str(len(body)), "X-Linked-Etag": f'"{digest}"'}
        self.answer(302, {**headers, **linked, "Location": location}, b"Found. Redirecting")


class _StorageHandler(_Handler):
    def do_GET(self) -> None:
        fault = self.start("storage")
        address = urlsplit(self.path)
        if fault is not None and fault.status:
            self.answer(fault.status, fault.headers, fault.body)
            return
        if parse_qs(address.query).get("signature") != [self.hub.signature]:
            self.answer(403, {}, b"<Error>expired</Error>")
            return
        _, commit, *path = unquote(address.path).split("/")
        found = next(one.commits[commit] for one in self.hub.repositories.values() if commit in one.commits)
        self.content(found["/".join(path)], {}, fault)


def _info(name: str, commit: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    siblings = [{"rfilename": path, "size": len(body), "blobId": _git_id(body)} for path, body in files.items()]
    return {"id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings, "tags": []}


def _entry(name: str, repository: Repository, commit: str) -> dict[str, Any]:
    modified = repository.modified.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    gated = "manual" if repository.gated else False
    return {"id": name, "sha": commit, "lastModified": modified, "gated": gated, "tags": [], **repository.listed}


def _matches(name: str, repository: Repository, asked: Mapping[str, list[str]]) -> bool:
    listed = repository.listed
    [author], [search], [task] = (asked.get(key, [""]) for key in ("author", "search", "pipeline_tag"))
    tags = {*listed.get("tags", ()), listed.get("library_name")}
    gated = {"true": True, "false": False}.get(asked.get("gated", [""])[0], repository.gated)
    return (
        (not author or name.startswith(f"{author}/"))
        and search.lower() in name.lower()
        and (not task or listed.get("pipeline_tag") == task)
        and tags >= {*asked.get("filter", ())}
        and repository.gated == gated
    )


def _tree(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "size": len(body), "oid": _git_id(body)}
        | ({"lfs": {"oid": _digest(body), "size": len(body), "pointerSize": 130}} if path.endswith(LARGE) else {})
        for path, body in files.items()
    ]


@cache
def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@cache
def _git_id(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
