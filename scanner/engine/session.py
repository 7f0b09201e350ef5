"""The connection to Ray: a running cluster, or a local Ray that only this user can reach and that ends with the command."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.job_config import JobConfig

from scanner.engine.options import PoolOptions
from scanner.errors import ScannerError

LOCAL = "local"
#: Bytes of the local object store, which only passes small tables; Ray's default would reserve a third of the memory.
_LOCAL_OBJECT_STORE = 256 << 20
_LOOPBACK = "127.0.0.1"
#: Seconds that a cluster may take to accept a connection.
_CONNECT_SECONDS = 15.0
#: Program of a process that waits until its stdin is closed, because the driver has ended in whatever way, and then ends the
#: processes with the given ids. Ray's own agents would look for the others for a minute.
_WATCHER = """
import os, signal, sys, time
def started(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return None
seen = {pid: started(pid) for pid in map(int, sys.argv[1:])}
sys.stdin.read()
time.sleep(2)
for pid, start in seen.items():
    if start is not None and started(pid) == start:
        os.kill(pid, signal.SIGKILL)
"""
#: Processes without which a Ray cannot continue.
_ESSENTIAL = ("gcs_server", "raylet")

_watcher: subprocess.Popen[bytes] | None = None


@contextlib.contextmanager
def ray_session(options: PoolOptions) -> Iterator[None]:
    """Connect to Ray: the connection of this process, a running cluster, or a local Ray that is shut down at the end.

    Raises:
        ScannerError: there is no cluster at the address, or Ray does not start on this machine.
    """
    if ray.is_initialized():
        yield
        return
    try:
        _connect(address_of(options))
        yield
    finally:
        ray.shutdown()
        _end_what_is_left()


def address_of(options: PoolOptions) -> str:
    """Return where Ray is: the address of a cluster, or `LOCAL`."""
    return options.address or os.environ.get("RAY_ADDRESS") or LOCAL


def check_local_ray() -> None:
    """Check that the Ray which this process has started, if it has, can go on; asks neither Ray nor the network.

    Raises:
        ScannerError: one of its processes has ended. Ray itself would wait for it forever, or end this process after a minute.
    """
    node = ray._private.worker._global_node
    dead: list[tuple[str, subprocess.Popen[bytes]]] = [] if node is None else node.dead_processes()
    for kind, process in dead:
        if kind not in _ESSENTIAL:
            continue
        code = process.returncode
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        raise ScannerError(
            f"Ray has ended on this machine ({kind}: {how}; the memory may have been exhausted): existing results are kept, and "
            "the same command resumes"
        )


def _connect(address: str) -> None:
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        _check_reachable(address)
        # Ray prints lost workers and nodes to stdout, between the data; the observer reports them anyway.
        ray._private.worker._worker_logs_enabled = False
        # Ray adds the working directory of the driver to the import path of the workers, where a file with the name of a module
        # would be executed instead of the module. It does so for every job except those of its own client.
        job = JobConfig(_client_job=True)
        settings: dict[str, Any] = {"job_config": job, "logging_level": logging.ERROR, "log_to_driver": False}
        if address == LOCAL:
            _start_local(settings)
        else:
            ray.init(address=address, **settings)
    except (OSError, ValueError, RuntimeError, ray_errors.RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address == LOCAL:
            raise ScannerError(f"Ray does not start on this machine: {_cause(reason)}") from error
        raise ScannerError(
            f"no Ray cluster at {address!r}: {reason}; start one with `ray start --head`, or omit the address to use this machine"
        ) from error
    except SystemExit as stopped:  # Ray turns SIGTERM into this while it starts
        raise KeyboardInterrupt from stopped
    finally:
        # Ray replaces the caller's handler of SIGTERM with one that ends the process.
        if callable(terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)


def _start_local(settings: dict[str, Any]) -> None:
    """Start a Ray whose ports are open on the loopback interface only.

    Ray replaces a loopback address with that of the network, except where it does not support clusters, which a constant says.
    """
    _hide_token()
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        with _no_python_after_fork():
            ray.init(
                address=LOCAL,
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE,
                _node_ip_address=_LOOPBACK,
                **settings,
            )
        _end_with_this_process()
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _no_python_after_fork() -> Iterator[None]:
    """Let Ray start its processes without running Python between fork and exec, while threads open checkpoints.

    A lock that a thread holds at the fork is never released in the child: the start would wait forever. Ray's function blocks
    SIGINT, which a mask that the child inherits does as well, and lets its processes end with this one, which the watcher does.
    """
    services: Any = ray._private.services
    plain: Any = services.ConsolePopen

    class Started(plain):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                super().__init__(*arguments, **{**options, "preexec_fn": None})
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    services.ConsolePopen = Started
    try:
        yield
    finally:
        services.ConsolePopen = plain


def _end_with_this_process() -> None:
    """See to it that the processes of the local Ray end even if this process is killed."""
    import psutil  # that of Ray

    ids = [str(process.pid) for process in psutil.Process().children(recursive=True)]
    # Its own session: Ctrl-C of a terminal does not reach it. -I -S: it needs nothing but the standard library, and starts fast.
    global _watcher
    _watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHER, *ids],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end_what_is_left() -> None:
    """Let the watcher end what outlives an orderly end, too: agents whose Ray had died."""
    if _watcher is not None and _watcher.stdin is not None:
        _watcher.stdin.close()


def _hide_token() -> None:
    """Let no other user read the token of a local Ray: Ray would write a new one to a file with ordinary permissions.

    A new token is passed to the processes of Ray through the environment instead. The file of the user's own token is closed to
    others.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    try:
        saved = Path(os.environ["HOME"], ".ray", "auth_token")
        if saved.read_text().strip():
            if saved.stat().st_mode & 0o077:
                saved.chmod(0o600)
            return
    except (KeyError, OSError, UnicodeDecodeError):
        pass
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _cause(reason: str) -> str:
    """Say what to do about the reason for which a local Ray did not start."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if "AF_UNIX path" in reason:
        return (
            f"the paths of its sockets in {folder} are longer than the system allows; set RAY_TMPDIR to a folder with a short "
            "path, such as RAY_TMPDIR=/tmp"
        )
    return f"{reason}; its logs are in {Path(folder, 'ray')}"


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing accepts connections at HOST:PORT: Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
