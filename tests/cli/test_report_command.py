"""`rmtscan report` and `rmtscan publish`: what they write and say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan

from .conftest import Run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"), create=True)
    add_scan(made, "a", [Matrix(tensor=f"block.{layer}.query", layer=layer) for layer in range(2)])
    return made


def test_a_report_is_written_and_its_place_is_told(rmtscan: Run, store: Store, tmp_path: Path) -> None:
    told = rmtscan("report", "org/model", "-o", tmp_path / "r.html", "--store", store.url)
    assert (told.status, told.out) == (0, b"")
    assert f"{tmp_path / 'r.html'}: 1 model, " in told.err
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["org/other"], "is not scanned"),
        (["-o", "gone/r.html"], "no folder"),
        (["--store", "nowhere"], "there is no store"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    rmtscan: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = rmtscan("report", "--store", store.url, *arguments)
    assert (told.status, len(told.errors)) == (1, 1)
    assert words in told.errors[0]


def test_a_store_is_published_and_its_tables_are_told(rmtscan: Run, store: Store, tmp_path: Path) -> None:
    told = rmtscan("publish", store.url, "--to", tmp_path / "to", "--format", "json")
    assert told.status == 0
    assert {row["table"]: row["rows"] for row in json.loads(told.out)} == {"scans": 1, "matrices": 2, "vectors": 8}
    assert "hf upload ORG/NAME" in told.err
    refused = rmtscan("publish", store.url, "--to", store.url)
    assert (refused.status, len(refused.errors)) == (1, 1)
