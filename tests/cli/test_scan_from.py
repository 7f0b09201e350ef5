"""`rmtscan scan --from`: references in a file and on stdin."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scanner.cli.scan import _references_in
from tests.engine.checkpoints import small

from .conftest import Run

ROOT = Path(__file__).parent.parent.parent


def test_a_line_is_a_reference_and_comments_and_blank_lines_are_none() -> None:
    lines = ["# models", "", "  ./one ", "org/two@main  # gated", "\t# x", "s3://bucket/a#b", "delta:a..b\t# tab"]
    assert [*_references_in(lines)] == ["./one", "org/two@main", "s3://bucket/a#b", "delta:a..b"]


@pytest.mark.usefixtures("local_ray")
def test_references_of_the_command_line_a_file_and_stdin(
    rmtscan: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (small(tmp_path / name, layers=1, hidden=8, seed=seed) for seed, name in enumerate(("one", "two")))
    listed = tmp_path / "models.txt"
    listed.write_text(f"# two models\n\n{two}  # a comment\n{tmp_path / 'missing'}\n{one}\n")
    told = rmtscan("scan", one, "--from", listed, "--store", tmp_path / "store", "--workers", 1, "--format", "json")
    assert told.status == 1, "one of them is missing"
    assert [(Path(row["model"]).name, row["analysed"]) for row in json.loads(told.out)] == [("one", 4), ("two", 4)]
    assert "missing does not exist" in told.err

    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{two}\n{one}\n"))
    again = rmtscan("scan", "--from", "-", "--store", tmp_path / "store", "--format", "json")
    assert again.status == 0
    assert [row["state"] for row in json.loads(again.out)] == ["already scanned"] * 2


def test_a_list_that_cannot_be_used_is_one_clear_error(
    rmtscan: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("# nothing\n")
    binary.write_bytes(b"\xff\xfe\x00")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    for listed, reason in (
        (empty, "names no checkpoint"),
        (binary, "not a text file in UTF-8"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        ("-", "stdin names no checkpoint"),
    ):
        told = rmtscan("scan", "--from", listed, "--store", tmp_path / "store")
        assert told.status == 1
        [line] = told.errors
        assert reason in line
        assert "`" not in line


def test_neither_a_reference_nor_a_list_is_wrong_usage(rmtscan: Run) -> None:
    told = rmtscan("scan")
    assert told.status == 2
    assert "--from" in told.told


def test_the_job_for_a_fleet_is_scan_with_a_file(tmp_path: Path) -> None:
    job = [sys.executable, str(ROOT / "jobs" / "scan_fleet.py"), str(tmp_path / "none.txt")]
    done = subprocess.run(
        [*job, "--store", str(tmp_path / "store")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "none.txt" in done.stderr
