"""Progress on a pseudo-terminal: every command that takes time shows something on stderr, and nothing of it goes to stdout."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from scanner.store import open_store
from tests.store.rows import Matrix, add_scan

COMMAND = "import sys, time\nfrom scanner.cli.main import main\n{}\nmain(sys.argv[1:])\n"
SLOW = """
import scanner.store
kept = scanner.store.open_store
def slow(*args, **more):
    time.sleep({seconds})
    return kept(*args, **more)
scanner.store.open_store = slow
"""


def on_a_terminal(*words: str, before: str = "") -> tuple[int, bytes, bytes]:
    """Run the command with stderr on a terminal of its own: exit status, stdout and stderr."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(before), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"},
    ) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not read:
                break
            told += read
        os.close(ours)
        assert process.stdout is not None
        return process.wait(), process.stdout.read(), told


@pytest.fixture
def store(tmp_path: Path) -> str:
    made = open_store(str(tmp_path / "store"), create=True)
    add_scan(made, "a", [Matrix(), Matrix(tensor="block.1.query", layer=1)], model="org/model")
    return made.url


VERBS = {
    "models": [],
    "status": [],
    "show": [],
    "query": ["outliers"],
    "sql": ["select 1 as a"],
    "verify": [],
    "report": ["-o", "{tmp}/r.html"],
    "export": ["csv", "org/model"],
    "rm": ["org/model", "--dry-run"],
    "compact": ["--dry-run"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_takes_more_than_a_second_shows_that_on_stderr_alone(store: str, tmp_path: Path, verb: str) -> None:
    words = [verb, *(word.format(tmp=tmp_path) for word in VERBS[verb]), "--store", store]
    status, out, told = on_a_terminal(*words, before=SLOW.format(seconds=2.5))
    assert status == 0, told
    assert b"\x1b[?25l" in told, "a spinner hides the cursor"
    assert told.rindex(b"\x1b[?25h") > told.rindex(b"\x1b[?25l"), "and shows it again"
    assert b"\x1b" not in out
    assert b"0:00:0" not in out


def test_loading_libraries_is_shown_until_something_else_is(store: str) -> None:
    before = (
        "import scanner.cli.query as q\nkept = q.printer\nq.printer = lambda *a, **m: time.sleep(2.5) or kept(*a, **m)"
    )
    status, out, told = on_a_terminal("query", "scans", "--store", store, before=before)
    assert (status, b"loading" in told, b"\x1b" in out) == (0, True, False)


def test_in_a_pipe_nothing_of_it_is_shown(store: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(SLOW.format(seconds=2.5)), "query", "scans", "--store", store],
        capture_output=True,
        check=True,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    assert done.stderr == b""
    assert b"org/model" in done.stdout
