"""A server with the API of S3 on loopback, and a proxy before it that counts, breaks, delays and repeats requests."""

from __future__ import annotations

import http.client
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
import pytest

KEY = "testing"
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "server", "date"}
LATE_SECONDS = 0.7
_BACKEND_SECONDS = 60


@dataclass
class Request:
    method: str
    path: str
    number: int
    """How many requests of this method came before."""


@dataclass
class Proxy:
    """A server that passes requests on to another, unless a fault happens."""

    backend: tuple[str, int]
    requests: list[tuple[str, str]] = field(default_factory=list)
    fault: Callable[[Request], str | None] = lambda request: None
    """Returns what happens to a request: nothing (None), or `refuse`, `fail` (503), `deny` (403), `lose` (it is done, but not
    answered), `slow`, `repeat` (it is done twice), `late` (not answered, and done after those that follow)."""
    gone: bool = False
    """Whether connections are closed without an answer."""
    server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def count(self, method: str) -> int:
        return sum(one == method for one, _ in self.requests)

    def start(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def _serve(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(size)
                request = Request(self.command, self.path, proxy.count(self.command))
                proxy.requests.append((self.command, self.path))
                fault = "refuse" if proxy.gone else proxy.fault(request)
                if fault == "refuse":
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault == "fail":
                    self._answer(
                        503, [("Retry-After", "0")], b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>"
                    )
                    return
                if fault == "deny":
                    self._answer(403, [], b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
                    return
                if fault == "late":
                    threading.Timer(LATE_SECONDS, self._ask, (body,)).start()
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault == "slow":
                    time.sleep(0.05)
                answer = self._ask(body)
                if fault == "repeat":
                    answer = self._ask(body)
                if fault == "lose":
                    self.close_connection = True
                    self.connection.close()
                    return
                self._answer(*answer)

            def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(*proxy.backend, timeout=_BACKEND_SECONDS)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                connection.request(self.command, self.path, body or None, headers)
                found = connection.getresponse()
                content = found.read()
                kept = [(name, value) for name, value in found.getheaders() if name.lower() not in _HOP]
                if self.command == "HEAD":
                    kept.append(("Content-Length", found.getheader("content-length") or "0"))
                connection.close()
                return found.status, kept, content

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *args: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def serving() -> Iterator[Proxy]:
    """Start both servers."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    backend = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    backend.start()
    host, port = backend.get_host_and_port()
    proxy = Proxy(backend=(host, port))
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
        backend.stop()


def environment(endpoint: str) -> dict[str, str]:
    """Variables that let S3 clients use an endpoint."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Proxy]:
    with serving() as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(proxy.url).items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield proxy
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def s3(s3_server: Proxy) -> Iterator[Proxy]:
    """The proxy without faults."""
    s3_server.requests.clear()
    yield s3_server
    s3_server.gone = False
    s3_server.fault = lambda request: None


@pytest.fixture
def bucket(s3: Proxy) -> str:
    """URL of a new bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(name)
    s3.requests.clear()
    return f"s3://{name}"
