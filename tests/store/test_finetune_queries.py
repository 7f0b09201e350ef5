"""Query `finetune_by_decile`, compared with numbers computed with numpy."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from scanner.store import SCHEMAS, Store

from .rows import NOON, table


def add(store: Store, run: str, order: str, decile: int | None, accuracies: list[float], **more: object) -> None:
    """One point per seed."""
    for seed, accuracy in enumerate(accuracies):
        row: dict[str, object] = dict.fromkeys(SCHEMAS["finetunes"].names)
        row |= {"run_id": run, "base_model": "org/base", "dataset": "boolq", "order": order, "decile": decile}
        row |= {"seed": seed, "accuracy": accuracy, "examples": 100, "epochs": 2, "seconds": 1.0}
        row |= {"roles": None if decile is None else "all", "finished_at": NOON + timedelta(hours=seed)}
        name = f"{run}-{order}-{decile}-{seed}-{more.get('roles', 'all')}".replace(",", ".").replace(" ", "-")
        store.write_rows("finetunes", name, table("finetunes", [row | more]), method={"rate": 1e-4})


NONE, FIRST, AFTER = [0.70, 0.74, 0.72], [0.60, 0.70], [0.50, 0.52, 0.54]


@pytest.fixture
def filled(store: Store) -> Store:
    add(store, "a", "none", None, NONE)
    add(store, "a", "remove-first", 10, FIRST)
    add(store, "a", "tune-first", 10, AFTER)
    add(store, "a", "tune-first", 1, [0.71], roles="query,value")
    add(store, "b", "none", None, [0.8], dataset="rte", base_model="org/other")
    add(store, "b", "tune-first", 2, [0.9], dataset="rte", base_model="org/other")
    return store


def test_a_line_for_each_order_and_decile_beside_the_untouched_runs(filled: Store) -> None:
    answer = filled.query("finetune_by_decile", run="a").to_pylist()
    expected = [("none", None, None, NONE), ("remove-first", "all", 10, FIRST), ("tune-first", "all", 10, AFTER)]
    expected.append(("tune-first", "query,value", 1, [0.71]))
    sigma = np.std(NONE, ddof=1)
    for row, (order, roles, decile, values) in zip(answer, expected, strict=True):
        assert (row["order"], row["roles"], row["decile"], row["seeds"]) == (order, roles, decile, len(values))
        assert row["accuracy"] == pytest.approx(np.mean(values))
        assert row["spread"] == (pytest.approx(np.std(values, ddof=1)) if len(values) > 1 else None)
        assert row["untouched"] == pytest.approx(np.mean(NONE))
        assert row["three_sigma"] == pytest.approx(3 * sigma)
        assert row["delta"] == pytest.approx(np.mean(values) - np.mean(NONE), abs=1e-12)
        assert row["delta_sigma"] == pytest.approx((np.mean(values) - np.mean(NONE)) / sigma, abs=1e-9)
        assert row["finished_at"] == NOON + timedelta(hours=len(values) - 1)


def test_one_untouched_run_has_no_spread_to_measure_with(filled: Store) -> None:
    answer = filled.query("finetune_by_decile", base="org/other").to_pylist()
    assert [(row["three_sigma"], row["delta_sigma"]) for row in answer] == [(None, None)] * 2
    assert [row["delta"] for row in answer] == pytest.approx([0.0, 0.1])


def test_untouched_runs_that_agree_exactly_have_no_unit(store: Store) -> None:
    add(store, "a", "none", None, [0.5, 0.5])
    add(store, "a", "tune-first", 3, [0.25])
    answer = store.query("finetune_by_decile").to_pylist()
    assert [(row["three_sigma"], row["delta_sigma"]) for row in answer] == [(0.0, None)] * 2


def test_parameters_choose(filled: Store) -> None:
    def orders(**params: object) -> list[tuple[str, object]]:
        return [(row["run_id"], row["roles"]) for row in filled.query("finetune_by_decile", **params).to_pylist()]

    assert len(orders()) == 6
    assert orders(dataset="rte") == [("b", None), ("b", "all")]
    assert orders(roles="query,value", base="org/base") == [("a", None), ("a", "query,value")]
    assert orders(run="nobody") == []


def test_a_data_set_that_was_renamed_between_two_calls_is_still_one_run(store: Store) -> None:
    add(store, "a", "none", None, [0.70, 0.74, 0.72])
    row: dict[str, object] = dict.fromkeys(SCHEMAS["finetunes"].names)
    row |= {"run_id": "a", "base_model": "org/copy", "dataset": "copy", "order": "none", "seed": 3, "accuracy": 0.76}
    row |= {"finished_at": NOON + timedelta(hours=9)}
    store.write_rows("finetunes", "a-copy", table("finetunes", [row]), method={})
    [line] = store.query("finetune_by_decile").to_pylist()
    assert (line["base_model"], line["dataset"], line["seeds"]) == ("org/copy", "copy", 4)
    assert line["accuracy"] == pytest.approx(0.73)
    assert store.query("finetune_by_decile", dataset="boolq").num_rows == 0
