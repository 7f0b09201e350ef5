"""The start of a local Ray by a process with threads."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray._private import services

from scanner.engine import session

MASK = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"


def test_ray_starts_its_processes_without_python_between_fork_and_exec() -> None:
    """A thread of this process may hold a lock, which would stay locked in the child forever."""
    plain = services.ConsolePopen
    with session._no_python_after_fork():
        started = services.ConsolePopen(
            [sys.executable, "-c", MASK],
            stdout=subprocess.PIPE,
            preexec_fn=lambda: pytest.fail("code ran in the child"),
        )
        assert services.ConsolePopen is not plain
    out, _ = started.communicate(timeout=60)
    assert (out.strip(), started.returncode) == (b"True", 0), "Ctrl-C of a terminal is not for the processes of Ray"
    assert services.ConsolePopen is plain
