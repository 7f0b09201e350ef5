"""The section for a model card: numbers of the store, in Markdown that no name can leave."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from scanner.errors import ScannerError
from scanner.export import model_card
from scanner.store import Store, open_store
from tests.cli.conftest import Run, rmtscan  # noqa: F401 (a fixture)
from tests.store.rows import Matrix, add_scan

HOSTILE = "org/<img src=x>|](http://evil)\n# head"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"), create=True)
    means = {"u_p_mean": 0.2, "v_p_mean": 0.4, "outliers_left": 1, "outliers_right": 2}
    query = [Matrix(tensor=f"{i}.query", layer=i, more=means) for i in range(3)]
    other = Matrix(tensor="0.mlp_up", role="mlp_up", more={"u_p_mean": 0.6, "v_p_mean": 0.8, "outliers_right": 7})
    add_scan(made, "one", [*query, other], model="org/one")
    add_scan(made, "two", [Matrix(more=means)], model=HOSTILE, hours=1)
    return made


def test_the_card_has_the_numbers_of_the_store(store: Store) -> None:
    lines = model_card(store, "org/one").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert rows[0][:6] == ["role", "matrices", "below", "above", "p (u)", "p (v)"]
    assert rows[1][:6] == ["query", "3", "3", "6", "0.20", "0.40"]
    assert rows[2][:6] == ["mlp\\_up", "1", "0", "7", "0.60", "0.80"]
    [badge] = [line for line in lines if line.startswith("![")]
    mean = (3 * (0.2 + 0.4) + 0.6 + 0.8) / 8
    assert f"mean p {mean:.2f} (random 0.50)" in badge
    address = badge.partition("](")[2].rstrip(")")
    assert unquote(address) == f"https://img.shields.io/badge/rmtscan-mean p {mean:.2f} (random 0.50)-blue"
    assert " " not in address
    assert (lines[0], lines[-1]) == ("<!-- begin of rmtscan -->", "<!-- end of rmtscan -->")


def test_no_name_leaves_its_place(store: Store) -> None:
    card = model_card(store, HOSTILE)
    assert "<img" not in card
    assert "\n# head" not in card
    assert re.search(r"(?<!\\)\]\(http://evil", card) is None, "the bracket is escaped, so there is no link"
    assert store.url not in card


def test_a_model_that_is_not_there_is_one_line(store: Store) -> None:
    with pytest.raises(ScannerError, match="org/none has no rows in"):
        model_card(store, "org/none")


def test_the_command_writes_it(rmtscan: Run, store: Store, tmp_path: Path) -> None:  # noqa: F811
    told = rmtscan("export", "card", "org/one", "--store", store.url)
    assert (told.status, told.out.decode()) == (0, model_card(store, "org/one"))
