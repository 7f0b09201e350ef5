"""Serving a site on loopback, with byte ranges, and keeping it current while the store changes.

The files are served by aiohttp's static handler, which answers ranges and conditional requests and leaves the folder under no name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanner.errors import ConfigError, ScannerError
from scanner.site.writing import Site, state_of, write_site
from scanner.store import open_store

if TYPE_CHECKING:
    from aiohttp import web

HOST = "127.0.0.1"
INTERVAL = 5.0
"""Seconds between two looks at the store."""
_NAMES = {"127.0.0.1", "localhost", "[::1]"}


def serve(
    url: str,
    *,
    port: int = 8137,
    interval: float = INTERVAL,
    ready: Callable[[str, Site], None] = lambda address, site: None,
    progress: Callable[[str], None] = lambda model: None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the site of a store to a temporary folder and serve it until interrupted.

    Args:
        url: the store.
        port: port on the loopback interface; 0: any free one.
        interval: seconds between two looks at the store; what changed is written again.
        ready: called with the address, when requests are answered.
        progress: called with the name of each model that is written, at first and later.
        tell: called with problems of the store, while the site stays as it is.

    Raises:
        ScannerError: there is no store, the port is taken, or a package is missing.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError("port", f"must be between 0 and 65535, got {port}")
    if not interval > 0:
        raise ConfigError("interval", f"must be a positive number of seconds, got {interval:g}")
    known = _state(url)  # before the first site: what changes while it is written is written next
    with contextlib.suppress(ValueError):  # in a thread, there are no signals
        signal.signal(signal.SIGTERM, _interrupted)
    with tempfile.TemporaryDirectory(prefix="rmtscan-site-") as folder:
        site = _write(url, folder, progress)
        assert site is not None  # nothing ends it but an exception
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):

            def follow() -> Coroutine[Any, Any, None]:
                return _keep_current(url, Path(folder), interval, progress, tell, known)

            asyncio.run(_serve(Path(folder), port, lambda address: ready(address, site), follow))


def application(folder: Path) -> web.Application:
    """Return the server of a folder: files, ranges, and no other host names, so that no page elsewhere reads it.

    Raises:
        ScannerError: aiohttp is not installed.
    """
    try:
        from aiohttp import web
    except ImportError as error:
        raise ScannerError("serving needs the package aiohttp: pip install 'rmtscan[site]'") from error

    @web.middleware
    async def guarded(request: web.Request, handler: Callable[..., object]) -> web.StreamResponse:
        # A page on the internet can give its own name this address (DNS rebinding).
        if request.host.rpartition(":")[0] not in _NAMES and request.host not in _NAMES:
            raise web.HTTPForbidden(text="this server answers to 127.0.0.1 and localhost only")
        response: web.StreamResponse = await handler(request)  # type: ignore[misc]
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-cache"
        return response

    async def start(_: web.Request) -> web.StreamResponse:
        return web.FileResponse(folder / "index.html")

    app = web.Application(middlewares=[guarded])
    app.router.add_get("/", start)
    app.router.add_static("/", folder, follow_symlinks=False)
    return app


def _interrupted(*_: object) -> None:
    """Let SIGTERM end what Ctrl-C ends, so that the temporary folder is removed while the site is written, too."""
    raise KeyboardInterrupt


class _Ended(Exception):
    """The server ends while its site is written."""


def _write(url: str, folder: str, progress: Callable[[str], None], ended: threading.Event | None = None) -> Site | None:
    """Write the site, in any thread; None if the server has ended before it was whole."""

    def begun(model: str) -> None:
        # The process waits for this thread: a thread that reads the store while the interpreter ends would have its connection
        # taken away.
        if ended is not None and ended.is_set():
            raise _Ended
        progress(model)

    # A store belongs to one thread, and sites are written in several, one after the other.
    store = open_store(url)
    try:
        return write_site(store, folder, live=True, progress=begun)
    except _Ended:
        return None
    finally:
        store.close()


async def _serve(
    folder: Path, port: int, ready: Callable[[str], None], follow: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Serve a folder while `follow` keeps it current."""
    from aiohttp import web

    # A service manager ends the server with SIGTERM, a user with Ctrl-C: both end the loop in an orderly way, and the temporary
    # folder is removed.
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    with contextlib.suppress(NotImplementedError, RuntimeError):
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel if task is not None else loop.stop)
    runner = web.AppRunner(application(folder), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        try:
            await site.start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError("port", f"{port} is in use: choose another one, or 0 for any") from error
            raise ScannerError(f"{HOST}:{port} cannot be served: {os.strerror(error.errno or 0)}") from error
        ready(f"http://{HOST}:{runner.addresses[0][1]}/")
        await follow()
    finally:
        await runner.cleanup()


async def _keep_current(
    url: str, folder: Path, interval: float, progress: Callable[[str], None], tell: Callable[[str], None], known: str
) -> None:
    """Write the site again whenever the store is in another state than `known`, and then than the one that was written."""
    ended, problem = threading.Event(), ""
    try:
        while True:
            await asyncio.sleep(interval)
            try:
                found = await asyncio.to_thread(_state, url)
                if found != known:
                    await asyncio.to_thread(_write, url, os.fspath(folder), progress, ended)
                    known = found
                problem = ""
            except ScannerError as error:  # such as a store on a disk that is gone for a moment
                if problem != str(error):  # and not again after each interval
                    problem = str(error)
                    tell(f"the store could not be read: {problem}")
    finally:
        ended.set()


def _state(url: str) -> str:
    store = open_store(url)
    try:
        return state_of(store)
    finally:
        store.close()
