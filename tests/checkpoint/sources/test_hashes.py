"""Hashes of local files that are known without reading them, and when they must not be believed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from scanner.checkpoint.sources import hashes, local_files
from scanner.checkpoint.sources.local_files import LocalFiles

NAME = "model.safetensors"
CONTENT = bytes(range(256)) * 5000
TRUE = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of known hashes, empty."""
    path = tmp_path / "cache" / "rmtscan" / "sha256.json"
    monkeypatch.delenv(hashes.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashes._hash_file.cache_clear()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a file that was written a moment ago, and not within the step of the clock."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    time.sleep(0.1)
    return folder


def next_run() -> None:
    hashes.flush()
    hashes._hash_file.cache_clear()


def read(folder: Path) -> tuple[str, bool]:
    """The hash of the file, and whether the file was read for it."""
    files, read = LocalFiles(str(folder)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_files.hashlib, "sha256", lambda: read.append(1) or hashlib.new("sha256"))
        return files.sha256(NAME), bool(read)


def test_an_unchanged_file_is_read_once(kept: Path, model: Path) -> None:
    assert LocalFiles(str(model)).unhashed([NAME]) == len(CONTENT)
    assert read(model) == (TRUE, True)
    next_run()
    assert read(model) == (TRUE, False)
    assert LocalFiles(str(model)).unhashed([NAME]) == 0
    assert kept.stat().st_mode & 0o077 == 0
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_file_with_its_old_size_and_time_is_read_again(kept: Path, model: Path) -> None:
    read(model)
    next_run()
    file = model / NAME
    before = file.stat()
    other = CONTENT[::-1]
    file.write_bytes(other)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(model) == (hashlib.sha256(other).hexdigest(), True)


def test_a_file_that_was_written_within_the_step_of_the_clock_is_not_kept(
    kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "CLOCK_STEP", 60.0)
    read(model)
    next_run()
    assert read(model) == (TRUE, True)
    assert not kept.exists()


def test_nothing_is_kept_if_the_variable_says_so_and_another_file_can_be_named(
    kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(hashes.VARIABLE, "0")
    assert read(model) == read(model) == (TRUE, True)
    assert not kept.exists()
    monkeypatch.setenv(hashes.VARIABLE, str(tmp_path / "elsewhere.json"))
    assert [read(model), read(model)] == [(TRUE, True), (TRUE, False)]
    hashes.flush()
    assert (tmp_path / "elsewhere.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 2, "files": {}}',
        b'{"format": 1, "files": []}',
        b'{"format": 1, "files": {"x": [1, 2]}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_of_hashes_is_replaced(kept: Path, model: Path, content: bytes) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    assert read(model) == (TRUE, True)
    next_run()
    assert read(model) == (TRUE, False)


def test_a_home_that_cannot_be_written_is_no_error(kept: Path, model: Path) -> None:
    kept.parent.parent.mkdir(parents=True, exist_ok=True)
    kept.parent.write_text("a file where the folder should be")
    assert read(model) == (TRUE, True)
    next_run()
    assert read(model) == (TRUE, True)


def test_two_processes_add_to_one_file_and_it_stays_small(
    kept: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(model)
    other = hashes._HashFile(kept)
    other.put("/other", (1, 2, 3, 4, 5), "0" * 64)
    other.write()
    next_run()
    assert {*json.loads(kept.read_text())["files"]} == {"/other", str(model / NAME)}
    monkeypatch.setattr(hashes, "_MOST_FILES", 3)
    for number in range(5):
        other.put(f"/{number}", (1, 2, 3, 4, 5), "0" * 64)
    other.write()
    assert [*json.loads(kept.read_text())["files"]] == ["/2", "/3", "/4"]


# ---- the cache of huggingface_hub


def cached(folder: Path, blob: str, *, kind: str = "models--org--name", shared: bool = False) -> Path:
    """A snapshot with one file that is a link to a blob of this name."""
    snapshot = folder / kind / "snapshots" / ("a" * 40)
    blobs = folder / "blobs" if shared else folder / kind / "blobs"
    for made in (snapshot, blobs):
        made.mkdir(parents=True)
    if shared:
        (blobs / hashes.SHARED_BLOBS_MARK).touch()
    (blobs / blob).write_bytes(CONTENT)
    (snapshot / NAME).symlink_to(os.path.relpath(blobs / blob, snapshot))
    return snapshot


@pytest.mark.parametrize("shared", [False, True])
def test_the_name_of_a_blob_is_its_hash(tmp_path: Path, shared: bool) -> None:
    snapshot = cached(tmp_path, "c" * 64, shared=shared)
    assert read(snapshot) == ("c" * 64, False), "not the content counts, but the name"
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / NAME).write_bytes(CONTENT)
    right = cached(tmp_path / "right", TRUE, shared=shared)
    assert LocalFiles(str(right)).identity([NAME]) == LocalFiles(str(plain)).identity([NAME])


def test_the_name_of_a_small_blob_is_no_sha256(tmp_path: Path) -> None:
    assert read(cached(tmp_path, "c" * 40)) == (TRUE, True)


def test_a_link_elsewhere_says_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / ("c" * 64)).write_bytes(CONTENT)
    (folder / NAME).symlink_to(folder / "blobs" / ("c" * 64))
    assert read(folder) == (TRUE, True)
