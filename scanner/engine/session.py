"""The connection to Ray: a running cluster, or a local Ray that only this user can reach and that ends with the command."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
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
#: Seconds between two looks at the head of a cluster, and without an answer until it is given up. Its head may be restarted in the
#: meantime; after 60 seconds Ray ends this process.
_HEAD_LOOK, _HEAD_PATIENCE = 5.0, 40.0
#: Seconds between two looks whether the local Ray has started, and their number; then Ray's own, slower looks follow.
_NODE_LOOK_SECONDS, _NODE_LOOKS = 0.02, 100
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
#: Settings of a local Ray's own processes: they would serve the metrics of the machine over HTTP to everybody, without a token.
_PRIVATE = {"enable_metrics_collection": False}
#: Environment variables from which Ray takes its token.
_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

_watcher: subprocess.Popen[bytes] | None = None
_before: dict[str, str | None] = {}  # the variables of the caller, while there is a local Ray
_private = False
_head_looked = _head_answered = float("-inf")


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
        _forget_token()


def is_private() -> bool:
    """Whether this process is connected to a local Ray that it has started for itself, whose metrics nobody can read."""
    return _private and bool(ray.is_initialized())


def address_of(options: PoolOptions) -> str:
    """Return where Ray is: the address of a cluster, or `LOCAL`."""
    return options.address or os.environ.get("RAY_ADDRESS") or LOCAL


def cluster_cores(options: PoolOptions) -> int:
    """Return the number of cores of all nodes of a running cluster.

    Raises:
        ScannerError: there is no cluster at the address.
    """
    with ray_session(options):
        return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]


def check_local_ray(*, look: bool = False) -> bool:
    """Check that Ray can go on: the processes that this process has started, if it has, or the head of the cluster.

    Args:
        look: try to reach the head even if it has just been looked at.

    Returns:
        Whether the head may be asked for something. A question to a head that is gone would wait until Ray ends this process.

    Raises:
        ScannerError: one of the processes has ended, or the head does not answer any more. Ray itself would wait forever, or end
            this process after a minute.
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
    if node is None or not node.is_head():
        return _check_head(look=look)
    return True


def _check_head(*, look: bool) -> bool:
    """Return whether something accepts connections at the address of the cluster's head; see `check_local_ray`.

    Raises:
        ScannerError: nothing has for `_HEAD_PATIENCE` seconds.
    """
    global _head_looked, _head_answered
    client = getattr(ray._private.worker.global_worker, "gcs_client", None)
    now = time.monotonic()
    if client is None:
        return True
    if not look and now - _head_looked < _HEAD_LOOK:
        return _head_answered >= _head_looked
    if now - _head_looked > 2 * _HEAD_PATIENCE:  # the looks of another run
        _head_answered = now
    _head_looked = now
    try:
        _check_reachable(client.address, timeout=_HEAD_LOOK)
    except OSError as error:
        if now - _head_answered > _HEAD_PATIENCE:
            raise ScannerError(
                f"the head of the Ray cluster at {client.address} has not answered for {_HEAD_PATIENCE:g} s: existing results are "
                "kept, and the same command resumes on a new cluster"
            ) from error
        return False
    _head_answered = now
    return True


def _connect(address: str) -> None:
    terminate = signal.getsignal(signal.SIGTERM)
    answered = False
    try:
        answered = _check_reachable(address)
        # Ray prints lost workers and nodes to stdout, between the data; the observer reports them anyway.
        ray._private.worker._worker_logs_enabled = False
        # Ray adds the working directory of the driver to the import path of the workers, where a file with the name of a module
        # would be executed instead of the module. It does so for every job except those of its own client.
        job = JobConfig(_client_job=True)
        settings: dict[str, Any] = {"job_config": job, "logging_level": logging.ERROR, "log_to_driver": False}
        _close_token_file()
        if address == LOCAL:
            _start_local(settings)
        else:
            ray.init(address=address, **settings)
    except (OSError, ValueError, RuntimeError, ray_errors.RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address == LOCAL:
            raise ScannerError(f"Ray does not start on this machine: {_cause(reason)}") from error
        if answered:
            raise ScannerError(
                f"the Ray cluster at {address!r} does not admit this process: {reason}; it may need its token "
                "(RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token), or be of another version of Ray"
            ) from error
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
    """Start a Ray whose ports are open on the loopback interface only, and whose token and files are closed to other users.

    Ray replaces a loopback address with that of the network, except where it does not support clusters, which a constant says.
    """
    global _private
    _use_fresh_token()
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        with _essential_processes_only(), _no_python_after_fork(), _no_long_wait():
            ray.init(
                address=LOCAL,
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE,
                _node_ip_address=_LOOPBACK,
                _temp_dir=str(_private_folder()),
                _system_config=dict(_PRIVATE),
                **settings,
            )
        _private = True
        _end_with_this_process()
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _essential_processes_only() -> Iterator[None]:
    """Start no autoscaler, no server of the dashboard, and no process that forwards logs: nothing here uses them.

    They take about a third of the processor time of Ray's start, the server would send usage statistics, and two would serve
    metrics without a token. `ray.init` has no arguments for this.
    """

    def nothing(node: object, **options: object) -> None:
        pass

    unused = ("start_monitor", "start_api_server", "start_log_monitor")
    node, utilities = ray._private.node.Node, ray._private.utils
    before = {name: getattr(node, name) for name in unused}
    looked: Any = utilities.get_dashboard_dependency_error
    try:
        for name in unused:
            setattr(node, name, nothing)
        # The agent of the node then loads no server of its own, as in an installation of Ray without the dashboard.
        utilities.get_dashboard_dependency_error = lambda: ImportError("no dashboard")
        yield
    finally:
        for name, method in before.items():
            setattr(node, name, method)
        utilities.get_dashboard_dependency_error = looked


@contextlib.contextmanager
def _no_long_wait() -> Iterator[None]:
    """Look often whether the local Ray has started: Ray looks once a second, and it needs about half a second."""
    services: Any = ray._private.services
    plain = services.get_node

    def get_node(gcs_address: str, node_id: str) -> Any:
        state: Any = ray._private.state.GlobalState()  # type: ignore[no-untyped-call]
        state._initialize_global_state(services._get_gcs_client_options(gcs_address))
        for _ in range(_NODE_LOOKS):
            if any(node["NodeID"] == node_id for node in state.node_table()):
                break
            time.sleep(_NODE_LOOK_SECONDS)
        return plain(gcs_address, node_id)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = plain


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


def _use_fresh_token() -> None:
    """Protect the local Ray of this run with a token that nobody else has; the variables of the caller are restored at its end.

    The token is passed to the processes of Ray through the environment, which only their user can read, and is in no file: Ray
    would write it to one with ordinary permissions. The user's own token, which may be that of a cluster, is not used.
    """
    _before.update({name: os.environ.pop(name, None) for name in _VARIABLES})
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _reload_token()


def _forget_token() -> None:
    """Restore what `_use_fresh_token` has replaced."""
    global _private
    _private = False
    if not _before:
        return
    for name, value in _before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _before.clear()
    _reload_token()


def _reload_token() -> None:
    """Let Ray read mode and token from the environment again: it keeps those of an earlier connection of this process."""
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _close_token_file() -> None:
    """Let no other user read the token of this user: Ray writes it to a file with ordinary permissions."""
    with contextlib.suppress(KeyError, OSError):
        saved = Path(os.environ["HOME"], ".ray", "auth_token")
        if saved.stat().st_mode & 0o077:
            saved.chmod(0o600)


def _private_folder() -> Path:
    """Return a folder for the files and sockets of local Rays that only this user can enter.

    Ray's default folder and everything in it is writable by every user: another user could replace the sockets and read the logs.
    """
    root = _temporary()
    shared = root / f"rmtscan-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        shared.mkdir(mode=0o700)
    found = shared.lstat()
    closed = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    if not closed:  # another user was here first
        shared = Path(tempfile.mkdtemp(prefix="rmtscan-", dir=root))
    # Ray opens the folder that it is given to everybody, so it gets one inside.
    return shared / "ray"


def _temporary() -> Path:
    """Return the folder for temporary files that Ray would use."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def _cause(reason: str) -> str:
    """Say what to do about the reason for which a local Ray did not start."""
    folder = _temporary()
    if "AF_UNIX path" in reason:
        return (
            f"the paths of its sockets in {folder} are longer than the system allows; set RAY_TMPDIR to a folder with a short "
            "path, such as RAY_TMPDIR=/tmp"
        )
    return f"{reason}; its logs are in {folder / f'rmtscan-{os.getuid()}'}"


def _check_reachable(address: str, *, timeout: float = _CONNECT_SECONDS) -> bool:
    """Raise OSError if nothing accepts connections at HOST:PORT: Ray itself would wait for minutes. False: no such address."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return False
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
    return True
