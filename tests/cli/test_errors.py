"""What a user can do wrong: one clear line on stderr, the right exit status, nothing on stdout, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from scanner.store import open_store
from tests.checkpoint.writing import checkpoint, file_bytes, info
from tests.engine.checkpoints import small, staged, tensors
from tests.store.rows import Matrix, add_scan

from .conftest import Run

# ---- checkpoints


def _weights(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    return folder


def _truncated(folder: Path) -> Path:
    content = (Path(small(folder / "whole")) / "model.safetensors").read_bytes()
    return _weights(folder / "cut", content[: len(content) // 2])


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _no_weights(folder: Path) -> Path:
    (folder / "text").mkdir()
    (folder / "text" / "config.json").write_text("{}")
    return folder / "text"


def _with_header(header: object, data: bytes = b"") -> Callable[[Path], Path]:
    return lambda folder: _weights(folder / "bad", file_bytes(header, data))


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing path": (lambda folder: folder / "nowhere", "does not exist"),
    "empty folder": (_empty, "is an empty folder"),
    "no weights": (_no_weights, "no weights"),
    "truncated file": (_truncated, "download it again"),
    "no header": (lambda folder: _weights(folder / "bad", b"abc"), "3 bytes"),
    "header longer than the file": (
        lambda folder: _weights(folder / "bad", file_bytes({"t": info()}, length=10**6)),
        "header alone promises 1000008",
    ),
    "header that is no JSON": (_with_header(b"{not json"), "not valid JSON"),
    "offsets out of range": (_with_header({"t": info(start=0, end=4)}), "download it again"),
    "offsets that overlap": (_with_header({"a": info(), "b": info(start=2, end=6)}, bytes(6)), "overlap"),
    "offsets that do not fit the shape": (_with_header({"a": info(shape=(2, 2))}, bytes(4)), "shape 2x2 need 16"),
    "nothing to analyse": (
        lambda folder: Path(checkpoint(folder / "flat", {"bias": torch.ones(4)})),
        "no matrix to analyze",
    ),
    "name that steers the terminal": (lambda folder: folder / "\x1b[31mred\n", r"\x1b[31mred\n"),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_scanned_is_one_line_and_status_1(rmtscan: Run, tmp_path: Path, case: str) -> None:
    make, said = BAD_CHECKPOINTS[case]
    told = rmtscan("scan", make(tmp_path), "--store", tmp_path / "store", "--format", "json")
    assert told.status == 1
    [line] = told.errors
    assert said in line
    assert line.isprintable()
    assert json.loads(told.out) == []


def test_one_bad_reference_among_good_ones_is_status_1_and_the_good_ones_are_scanned(
    rmtscan: Run, tmp_path: Path, local_ray: None
) -> None:
    good = checkpoint(tmp_path / "good", tensors(layers=1, hidden=8))
    arguments = ["--store", tmp_path / "store", "--workers", 1, "--format", "json"]
    told = rmtscan("scan", tmp_path / "nowhere", good, *arguments)
    assert told.status == 1
    assert [(row["model"], row["analysed"]) for row in json.loads(told.out)] == [("good", 4)]
    assert told.errors[-1].startswith(f"error: cannot scan {tmp_path / 'nowhere'}")


# ---- stores


def _is_a_file(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file"


def _is_below_a_file(folder: Path) -> Path:
    return _is_a_file(folder) / "store"


BAD_STORES: dict[str, tuple[Callable[[Path], object], str]] = {
    "file": (_is_a_file, "is a file"),
    "below a file": (_is_below_a_file, "choose another --store"),
    "not writable": (lambda folder: "/proc/rmtscan", "choose another --store"),
    "unknown protocol": (lambda folder: "gopher9://x/y", "cannot be reached"),
    "empty name": (lambda folder: "", "is empty"),
}


@pytest.mark.parametrize("case", BAD_STORES)
def test_a_store_that_cannot_be_used_is_one_line_and_status_1(rmtscan: Run, tmp_path: Path, case: str) -> None:
    make, said = BAD_STORES[case]
    told = rmtscan("scan", small(tmp_path / "model"), "--store", make(tmp_path))
    assert (told.status, told.out) == (1, b"")
    [line] = told.errors
    assert said in line


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that takes no files: mounted read-only for root (for whom permissions do not count), else by permission."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mounted = os.geteuid() == 0 and _mount(folder, "ro")
    if not mounted:
        folder.chmod(0o500)
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def _mount(folder: Path, options: str) -> bool:
    """Mount an empty file system in memory; False where that is not allowed."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        return False
    return subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode == 0


def test_a_store_without_the_right_to_write_says_so(rmtscan: Run, tmp_path: Path, read_only: Path) -> None:
    told = rmtscan("scan", small(tmp_path / "model"), "--store", read_only / "store")
    assert told.status == 1
    [line] = told.errors
    if read_only.stat().st_mode & 0o200 == 0 or os.path.ismount(read_only):
        assert "is not writable" in line
    assert "choose another --store" in line


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder that is full after some files, and what makes room in it.

    A small file system in memory where that is allowed; elsewhere the call that ends every write fails like on one.
    """
    folder = tmp_path / "full"
    folder.mkdir()
    if _mount(folder, "size=256k"):
        room = ["mount", "-o", "remount,size=8m", str(folder)]
        try:
            yield folder, lambda: subprocess.run(room, check=True) and None  # type: ignore[misc]
        finally:
            subprocess.run(["umount", folder], check=True)
        return
    allowed = iter(range(12))
    replace = os.replace

    def until_full(source: Path, target: str) -> None:
        if next(allowed, None) is None:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", until_full)
    yield folder, lambda: monkeypatch.setattr("os.replace", replace)


def test_a_store_that_is_full_ends_the_scan_and_goes_on_when_there_is_room(
    rmtscan: Run, tmp_path: Path, full: tuple[Path, Callable[[], None]], local_ray: None
) -> None:
    folder, make_room = full
    command = ["scan", small(tmp_path / "model", layers=4), "--store", folder, "--workers", 1, "--format", "json"]
    told = rmtscan(*command)
    assert (told.status, told.out) == (1, b"")
    [line] = told.errors
    assert "is full" in line
    assert "free space" in line
    kept = staged(folder)
    assert 0 < kept < 16
    assert not list(folder.rglob("*.tmp")), "no half-written file is left"

    make_room()
    told = rmtscan(*command)
    assert (told.status, told.errors) == (0, [])
    assert f"{kept} have results from an earlier run" in told.err
    assert [row["analysed"] for row in json.loads(told.out)] == [16]


# ---- clusters


def test_a_cluster_that_is_not_there_is_one_line(rmtscan: Run, tmp_path: Path) -> None:
    """In a process of its own: this one may be connected to a Ray already."""
    script = Path(shutil.which("rmtscan", path=os.fspath(Path(os.sys.executable).parent)) or "rmtscan")
    command = [script, "scan", small(tmp_path / "model"), "--store", tmp_path / "store", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "no Ray cluster at '127.0.0.1:1'" in line


# ---- wrong usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scan"], "REF"),
        (["scan", "m", "--only", "queries"], "'queries' is not one of query, key"),
        (["scan", "m", "--only", "query,"], None),
        (["scan", "m", "--layers", "5-3"], "'5-3' is not a layer or a range like 0-5"),
        (["scan", "m", "--layers", "a"], "'a' is not a layer"),
        (["scan", "m", "--layers", "-1"], "--layers"),
        (["scan", "m", "--layers", "0-99999999"], "a range of more than 10,000 layers"),
        (["scan", "m", "--layers", "²"], "is not a layer"),
        (["scan", "m", "--null", "guess"], "--null"),
        (["scan", "m", "--null", "mc:0"], "--null"),
        (["scan", "m", "--null", "mc:x"], "--null"),
        (["scan", "m", "--sigma", "mean"], "--sigma"),
        (["scan", "m", "--ensemble", "goe"], "'goe' is not one of gaussian"),
        (["scan", "m", "--workers", "0"], "--workers"),
        (["scan", "m", "--workers", "many"], "--workers"),
        (["scan", "m", "--gpus-per-worker", "-1"], "--gpus-per-worker"),
        (["scan", "m", "--format", "xml"], "--format"),
        (["scan", "m", "--frobnicate"], "No such option"),
        (["scam"], "No such command"),
        (["query"], "--list"),
        (["query", "scans", "-p", "model"], "'model' is not NAME=VALUE"),
        (["query", "scans", "-p", "=x"], "'=x' is not NAME=VALUE"),
        (["sql"], "STATEMENT"),
    ],
)
def test_wrong_usage_is_status_2(
    rmtscan: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    told = rmtscan(*arguments)
    if said is None:  # a comma too many does no harm
        assert told.status == 1
        return
    assert (told.status, told.out) == (2, b"")
    assert said in told.told
    assert not list(tmp_path.iterdir()), "nothing is made before the usage is known to be right"


def test_an_extension_that_cannot_be_imported_is_one_line(rmtscan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMTSCAN_EXTENSIONS", "no_such_extension")
    told = rmtscan("models")
    assert (told.status, told.out) == (1, b"")
    [line] = told.errors
    assert "extension 'no_such_extension' cannot be imported" in line


# ---- questions


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A store with one scan."""
    add_scan(open_store(str(tmp_path / "asked"), create=True), "abc", [Matrix()])
    return tmp_path / "asked"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query", "outlier"], "no query 'outlier'; did you mean 'outliers'?"),
        (["query", "zzz"], "known: "),
        (["query", "scans", "-p", "modle=x"], "no parameter 'modle'; did you mean 'model'?"),
        (["query", "outliers", "-p", "heads=perhaps"], "'perhaps' is neither true nor false"),
        (["query", "outlier", "--list"], "did you mean 'outliers'?"),
        (["sql", "SELEC 1"], "syntax error"),
        (["sql", "SELECT nothing FROM matrices"], "nothing"),
        (["sql", "SELECT * FROM matrixes"], "matrixes"),
        (["sql", "DROP VIEW matrices"], "only one SELECT statement"),
        (["sql", "SELECT 1; SELECT 2"], "only one SELECT statement"),
        (["sql", "COPY matrices TO '/tmp/rmtscan-copied'"], "only one SELECT statement"),
        (["sql", "SELECT * FROM read_text('/etc/passwd')"], "etc/passwd"),
    ],
)
def test_a_question_that_has_no_answer_is_one_line_and_status_1(
    rmtscan: Run, asked: Path, arguments: list[str], said: str
) -> None:
    told = rmtscan(*arguments, *([] if "--list" in arguments else ["--store", asked]))
    assert (told.status, told.out) == (1, b"")
    [line] = told.err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize("verb", [["models"], ["status"], ["query", "scans"], ["sql", "SELECT 1"]])
def test_asking_a_store_that_is_not_there_says_how_to_make_one(rmtscan: Run, tmp_path: Path, verb: list[str]) -> None:
    told = rmtscan(*verb, "--store", tmp_path / "nowhere")
    assert (told.status, told.out) == (1, b"")
    [line] = told.errors
    assert "there is no store at" in line
    assert "rmtscan scan REF" in line
