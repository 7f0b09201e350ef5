"""Figure `finetuning`: its data from table `finetunes`, and the errors for missing data."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from scanner.errors import ScannerError
from scanner.figures import FIGURES, save
from scanner.store import Store, open_store
from tests.store.rows import NOON
from tests.store.test_finetune_queries import AFTER, FIRST, NONE, add


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


def filled(store: Store) -> Store:
    add(store, "a", "none", None, NONE)
    for decile in (1, 5, 10):
        add(store, "a", "remove-first", decile, FIRST)
        add(store, "a", "tune-first", decile, AFTER)
    return store


@pytest.mark.parametrize("interactive", [False, True])
def test_both_orders_stand_beside_the_untouched_runs(store: Store, interactive: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = FIGURES["finetuning"].draw(filled(store), interactive=interactive)
    drawn = chart.to_dict()
    text = json.dumps(drawn)
    assert "removed, then fine-tuned" in text
    assert "fine-tuned, then removed" in text
    assert ('"tooltip"' in text) == interactive
    rows = [row for values in drawn["datasets"].values() for row in values]
    deciles = {row["decile"] for row in rows if "what" in row}
    assert deciles == {1, 5, 10}
    band = next(row for row in rows if row["decile"] == 0.5)
    assert (band["low"], band["high"]) == pytest.approx((0.72 - 0.06, 0.72 + 0.06))
    assert " ".join(drawn["title"]["subtitle"]) == (
        "org/base boolq, 100 texts, 2 epochs; removed from: all "
        "2-3 seeds, ± one standard deviation; gray: 3 untouched, ± three standard deviations"
    )
    assert save(chart, tmp_path / "f.svg").stat().st_size > 1000


def test_lines_connect_only_deciles_that_follow_one_another(store: Store) -> None:
    add(store, "a", "none", None, NONE)
    for decile in (1, 2, 5, 10):
        add(store, "a", "remove-first", decile, FIRST)
    drawn = FIGURES["finetuning"].draw(store).to_dict()
    rows = [row for values in drawn["datasets"].values() for row in values if "part" in row]
    parts: dict[object, list[int]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row["decile"])
    assert sorted(parts.values()) == [[1, 2], [5], [10]]
    [line] = [layer for layer in drawn["layer"] if layer["mark"]["type"] == "line" and "color" in layer["encoding"]]
    assert line["encoding"]["detail"]["field"] == "part"


def test_the_newest_run_of_the_base_and_role_that_are_meant(store: Store) -> None:
    add(store, "b", "none", None, [0.8])
    add(store, "b", "tune-first", 3, [0.7], roles="query")
    subtitle = FIGURES["finetuning"].draw(filled(store), role="query").to_dict()["title"]["subtitle"]
    assert subtitle[1].endswith("removed from: query")
    assert subtitle[2] == "1 seed, ± one standard deviation; gray: 1 untouched"
    add(store, "c", "none", None, [0.8], base_model="org/other")
    with pytest.raises(ScannerError, match=r"several models were fine-tuned; give `base`, one of: org/base, org/other"):
        FIGURES["finetuning"].draw(store)
    with pytest.raises(ScannerError, match="no decile was removed in the fine-tuning of 'org/other'"):
        FIGURES["finetuning"].draw(store, base="org/other")
    with pytest.raises(ScannerError, match=r"no model 'org/bse' was fine-tuned: did you mean 'org/base'"):
        FIGURES["finetuning"].draw(store, base="org/bse")
    with pytest.raises(ScannerError, match="no decile was removed from 'key'"):
        FIGURES["finetuning"].draw(store, base="org/base", role="key")


def test_directions_that_were_projected_out_are_named(store: Store) -> None:
    for decile in (1, 10):
        add(filled(store), "a", "tune-first", decile, [0.4, 0.5, 0.6], roles="after norm", finished_at=NOON)
    chart = FIGURES["finetuning"].draw(store, role="after norm").to_dict()
    assert chart["title"]["subtitle"][1] == "boolq, 100 texts, 2 epochs; directions after norms"
    assert "removed decile (1: smallest eigenvalues)" in json.dumps(chart)
    rows = [row for values in chart["datasets"].values() for row in values if "what" in row]
    assert [(row["what"], row["decile"], row["accuracy"]) for row in rows] == [
        ("fine-tuned, then removed", decile, pytest.approx(0.5)) for decile in (1, 10)
    ]
    plain = json.dumps(FIGURES["finetuning"].draw(store, role="all").to_dict())
    assert "removed decile (1: smallest singular values)" in plain


def test_a_run_is_drawn_that_is_named(store: Store) -> None:
    add(filled(store), "b", "none", None, [0.8], dataset="rte")
    add(store, "b", "tune-first", 7, [0.9], dataset="rte")
    text = json.dumps(FIGURES["finetuning"].draw(store, run="b").to_dict())
    assert ("rte" in text, "boolq" in text) == (True, False)
    with pytest.raises(ScannerError, match="unknown run 'c'"):
        FIGURES["finetuning"].draw(store, run="c")


def test_without_any_run_it_says_how_to_begin(store: Store) -> None:
    with pytest.raises(ScannerError, match=r"holds no fine-tuning: run 'rmtscan finetune BASE --task FILE'"):
        FIGURES["finetuning"].draw(store)
