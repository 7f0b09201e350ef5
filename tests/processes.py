"""Processes that tests start, and what these have started, read from /proc: tests may only look at, and end, their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Process = tuple[int, str]
"""Process id and start time: together they name one process, even after its id is given to another."""


def python(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with these additional variables, on a Ray of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=280, check=False
    )


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _running() -> dict[int, tuple[int, str]]:
    """Every process that runs: its id to its parent's id and its start time."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (fields := _stat(int(folder.name))) and fields[0] != "Z":
            found[int(folder.name)] = (int(fields[1]), fields[19])
    return found


def descendants(pid: int) -> set[Process]:
    """What a process has started, directly or not, and still runs below it."""
    running = _running()
    found: set[int] = {pid}
    while more := {child for child, (parent, _) in running.items() if parent in found} - found:
        found |= more
    return {(child, running[child][1]) for child in found - {pid}}


def alive(processes: set[Process]) -> set[Process]:
    """Those that still run."""
    return processes & {(pid, started) for pid, (_, started) in _running().items()}


def command(pid: int) -> str:
    """The command line of a process, empty if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _heeding_interrupts() -> None:
    """Tests that a shell runs in its background ignore SIGINT, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def in_the_middle(
    arguments: Sequence[str], errors: Path, begun: Callable[[], object]
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that starts a Ray of its own, in a process group of its own, once `begun` holds; its stderr goes to a file."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with errors.open("wb") as log:
        driver = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
            preexec_fn=_heeding_interrupts,
        )
        try:
            wait_until(lambda: begun() or driver.poll() is not None, "the first result")
            yield driver
        finally:
            driver.kill()
            driver.communicate()


def ray_workers() -> list[int]:
    """Process ids of the actors that this process's local Ray runs for the scanner."""
    return [pid for pid, _ in descendants(os.getpid()) if command(pid).startswith("ray::Worker")]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    """Return as soon as the condition holds.

    Raises:
        TimeoutError: it never did.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen in {seconds} s")
        time.sleep(0.02)
