"""An ablation that is interrupted and then killed in the middle: no finished point is lost or computed again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.experiments.tiny import save, text_file
from tests.processes import alive, command, descendants, in_the_middle, wait_until

from .conftest import Run

TOKENS = 4_000
#: Of two roles ten deciles and a random set (their matrices have 60 values: all deciles are of one size), and the intact model.
POINTS = 2 * (10 + 1) + 1


def written(store: Path) -> dict[str, int]:
    """The points' files and when each was written."""
    return {path.stem: path.stat().st_mtime_ns for path in (store / "ablations").glob("*.parquet")}


def test_the_same_command_goes_on_from_the_finished_points(rmtscan: Run, tmp_path: Path, local_ray: None) -> None:
    sizes = {"hidden_size": 120, "intermediate_size": 240, "num_hidden_layers": 3}
    model, text = save(tmp_path / "model", "llama", **sizes), text_file(tmp_path, count=TOKENS)
    store, errors = tmp_path / "store", tmp_path / "errors"
    measured = ["--tokens", str(TOKENS), "--window", "64", "--roles", "value,key", "--random", "1", "--workers", "1"]
    arguments = ["ablate", str(model), "--text", str(text), *measured, "--format", "json", "--store", str(store)]

    def ended_by(how: signal.Signals, after: int) -> subprocess.Popen[bytes]:
        """Run the command until so many points are there, and send the signal."""
        process = [sys.executable, "-m", "scanner.cli.main", *arguments]
        with in_the_middle(process, errors, lambda: len(written(store)) >= after) as driver:
            started = {one for one in descendants(driver.pid) if command(one[0]).startswith("ray::Worker")}
            driver.send_signal(how)
            out, _ = driver.communicate(timeout=30)
        assert out == b""
        assert started, "a worker was there"
        wait_until(lambda: not alive(started), "the end of the workers", seconds=20)
        return driver

    assert ended_by(signal.SIGINT, 3).returncode == 130
    told = errors.read_text()
    assert "Traceback" not in told
    assert f"interrupted: existing results are kept in {store}; the same command resumes" in told
    interrupted = written(store)
    assert 3 <= len(interrupted) < POINTS

    ended_by(signal.SIGKILL, len(interrupted) + 3)
    assert f"({len(interrupted) - 1} have results from an earlier run)" in errors.read_text()
    killed = written(store)
    assert len(interrupted) + 3 <= len(killed) < POINTS

    again = rmtscan(*arguments)
    assert again.status == 0, again.err
    assert f"{POINTS - 1} points, {len(killed) - 1} of them from earlier runs, 0 failed" in again.told
    done = written(store)
    assert len(done) == POINTS
    assert {name: done[name] for name in interrupted} == interrupted, "a finished point was written again"
    assert {name: done[name] for name in killed} == killed, "a finished point was written again"
