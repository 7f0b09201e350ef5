"""Identities of scans, comparisons and runs are those of earlier versions: equal content and method mean equal names."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.fixtures.store import unpack

from . import identities

FROZEN = json.loads(identities.FILE.read_text("utf-8"))
VERBS = {"scan", "compare", "activations", "ablate", "slicing", "finetune", "lazy-learning"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("fixture"))


def test_every_kind_is_frozen() -> None:
    assert [shlex.split(row["call"]) for row in FROZEN["calls"]] == [*identities.CALLS]
    assert {call[0] for call in identities.CALLS} == VERBS
    assert all(row["ids"] for row in FROZEN["calls"])


def test_parameters_at_their_defaults_do_not_change_an_identity() -> None:
    ids = {row["call"]: row["ids"] for row in FROZEN["calls"]}
    plain = ids["scan models/base"]
    same = [call for call, found in ids.items() if found == plain]
    assert same == ["scan models/base", *(f"scan models/base --{what}" for what in _DEFAULTS)]


_DEFAULTS = ("sigma median", "null table", "ensemble gaussian")


def test_contents(folder: Path) -> None:
    assert identities.contents(folder) == FROZEN["contents"]


@pytest.mark.parametrize("number", range(len(identities.CALLS)), ids=[" ".join(call) for call in identities.CALLS])
def test_identities(number: int, folder: Path, tmp_path: Path) -> None:
    expected = FROZEN["calls"][number]["ids"]
    assert identities.identities(identities.CALLS[number], folder, tmp_path / "store") == expected
