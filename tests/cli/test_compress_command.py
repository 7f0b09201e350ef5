"""`rmtscan compress`: its table, its notes, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.experiments.tiny import save, text_file

from .conftest import Run

SHORT = ("--tokens", "256", "--calibration-tokens", "256", "--window", "32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    save(path / "llama", "llama")
    text_file(path, 1000)
    return path


def test_the_table_has_the_rule_and_what_it_is_compared_with(rmtscan: Run, folder: Path, tmp_path: Path) -> None:
    given = ("--by", "p", "--budget", "0.8", "--text", folder / "text.txt", *SHORT, "-o", tmp_path / "new")
    told = rmtscan("compress", folder / "llama", *given, "--format", "json")
    rows = {row["rule"]: row for row in json.loads(told.out)}
    assert (told.status, [*rows]) == (0, ["intact", "p", "energy", "svd-llm"])
    assert rows["p"]["nats_low"] < rows["p"]["nats"] < rows["p"]["nats_high"]
    assert rows["energy"]["versus_chosen"] is not None
    assert rows["intact"]["share"] == 1.0
    assert f"{tmp_path / 'new'}: 14 matrices; as factors, the model has " in told.err
    assert "--factored writes fewer parameters" in told.err


def test_an_interruption_leaves_nothing_and_says_so(
    rmtscan: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanner.compress import folder as folders

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders.json, "dumps", interrupt)  # the last file is written
    told = rmtscan("compress", folder / "llama", "--by", "energy", "-o", tmp_path / "new")
    assert told.status == 130
    assert "interrupted: nothing was written" in told.err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "1.5"], "--budget must be between 0 and 1"),
        (["--by", "importance"], "--text is missing: importance needs the activations"),
        (["--layers", "7"], "has no layer 7"),
        (["-o", "."], "is not empty: name another folder"),
    ],
)
def test_what_cannot_be_compressed_is_one_line(
    rmtscan: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept", "utf-8")
    told = rmtscan("compress", folder / "llama", *(["-o", "new"] if "-o" not in arguments else []), *arguments)
    assert (told.status, len(told.errors)) == (1, 1)
    assert words in told.errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
