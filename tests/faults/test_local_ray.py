"""A local Ray: who can reach it, and what happens when its processes or its driver are killed."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from scanner.engine import session
from scanner.errors import ScannerError
from tests.engine.checkpoints import slow, staged
from tests.processes import alive, command, descendants, in_the_middle, wait_until

COMMAND = [sys.executable, "-m", "scanner.cli.main", "scan"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return slow(tmp_path_factory.mktemp("killed") / "model", matrices=40, size=1000)


def test_the_token_of_the_user_is_closed_to_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123456789")
    token.chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path))
    session._close_token_file()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


@pytest.mark.parametrize("home", ["none", "missing"])
def test_a_user_without_a_token_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    if home == "none":
        monkeypatch.delenv("HOME")
    session._close_token_file()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_the_end_of_a_process_of_ray_is_one_line_and_the_end_of_all(model: str, tmp_path: Path, victim: str) -> None:
    store, errors = tmp_path / "store", tmp_path / "errors"
    arguments = [*COMMAND, model, "--store", str(store), "--workers", "1"]
    with in_the_middle(arguments, errors, lambda: staged(store) >= 2) as driver:
        started = descendants(driver.pid)
        [pid] = [pid for pid, _ in started if Path(command(pid).partition(" ")[0]).name == victim]
        os.kill(pid, signal.SIGKILL)
        out, _ = driver.communicate(timeout=60)
        told = errors.read_text()
        assert (driver.returncode, out) == (1, b""), told
        assert "Traceback" not in told
        [line] = [line for line in told.splitlines() if line.startswith("error: ")]
        assert f"Ray has ended on this machine ({victim}: killed by signal 9" in line
        assert "the same command resumes" in line
        assert staged(store) >= 2
        wait_until(lambda: not alive(started), "the end of everything that the command started", seconds=20)


@pytest.mark.parametrize("stopped", [False, True], ids=["driver", "driver with a stopped worker"])
def test_nothing_outlives_a_killed_driver(model: str, tmp_path: Path, stopped: bool) -> None:
    store = tmp_path / "store"
    arguments = [*COMMAND, model, "--store", str(store), "--workers", "1"]
    with in_the_middle(arguments, tmp_path / "errors", lambda: staged(store) >= 2) as driver:
        started = descendants(driver.pid)
        assert any(command(pid).startswith("ray::RuntimeEnvAgent") for pid, _ in started)
        if stopped:
            [worker] = [pid for pid, _ in started if command(pid).startswith("ray::Worker")]
            os.kill(worker, signal.SIGSTOP)
        driver.kill()
        driver.wait()
        wait_until(lambda: not alive(started), "the end of everything that the driver started", seconds=15)


def test_socket_paths_that_are_too_long_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise OSError(
            "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /long/ray/session_1"
        )

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(session, "_private_folder", lambda: Path("/long/rmtscan-0/ray"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/long")
    with (
        pytest.raises(ScannerError, match=r"sockets in /long are longer than the system allows; set RAY_TMPDIR"),
        session.ray_session(session.PoolOptions(address="local")),
    ):
        pass
