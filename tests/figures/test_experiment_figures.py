"""Figures of activations, ablation and slicing: their data, and the errors for missing data."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from scanner.errors import ScannerError
from scanner.figures import FIGURES
from scanner.figures.activations import activation_overlap
from scanner.figures.selection import rows_of
from scanner.store import Store, open_store
from tests.store.rows import NOON
from tests.store.test_experiment_queries import add_overlaps, add_point, add_run

from .stores import add_experiments

NAMES = ("activation_overlap", "activation_spectrum", "ablation", "slicing")


@pytest.fixture
def empty_store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


@pytest.fixture
def store(empty_store: Store) -> Store:
    store = empty_store
    add_experiments(store)
    return store


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("interactive", [False, True])
def test_every_figure_draws(store: Store, name: str, interactive: bool) -> None:
    chart = FIGURES[name].draw(store, interactive=interactive, model="org/model").to_dict()
    assert chart["title"]["subtitle"][0] == "org/model @ r1"


def test_overlaps_are_drawn_over_the_entries_of_their_vectors_centred_or_not(store: Store) -> None:
    add_overlaps(store, "run", [0.8, 0.6], tensor="uncentred", centred=False, peak=0.3)
    for centred, overlap, peak in ((True, [0.1, 0.2, 0.7, 0.9], 0.2), (False, [0.6, 0.8], 0.3)):
        chart = activation_overlap(store, centred=centred).to_dict()
        (panel,) = chart["concat"]
        upper, lower = (part["layer"][2] for part in panel["vconcat"])
        assert [part["encoding"]["y"]["field"] for part in (upper, lower)] == ["overlap", "peak"]
        rows = chart["datasets"][lower["data"]["name"]]
        assert [row["overlap"] for row in rows] == pytest.approx(overlap)
        assert [row["peak"] for row in rows] == pytest.approx([peak] * len(rows))
        assert ("not centered" in chart["title"]["subtitle"][1]) != centred


def test_the_newest_run_is_the_one_with_the_newest_point(store: Store) -> None:
    """More points were measured of the old run: its own row, with the baseline, is as old as before."""
    add_run(store, "newer", "ablation", hours=1)
    for decile in range(1, 11):
        add_point(store, f"d{decile}", run_id="newer", set=f"decile:{decile}", finished_at=NOON.replace(hour=13))
    drawn = [row["run_id"] for row in rows_of(store, "point_runs", kind="ablation")]
    assert drawn == ["newer", "points"]
    add_point(store, "late", run_id="points", set="decile:3", roles="key", finished_at=NOON.replace(hour=14))
    assert [row["run_id"] for row in rows_of(store, "point_runs", kind="ablation")] == ["points", "newer"]
    assert [row["run_id"] for row in rows_of(store, "point_runs", kind="slicing")] == ["slices"]


def test_points_and_random_sets_are_in_the_data_of_an_ablation(store: Store) -> None:
    chart = FIGURES["ablation"].draw(store).to_dict()
    values = chart["datasets"][chart["data"]["name"]]
    assert [(row["label"], row["delta"], row["low"], row["random_delta"]) for row in values] == [
        (str(decile), decile - 2.0, decile - 2.5, 1.0) for decile in range(1, 11)
    ]


def test_a_destroyed_model_does_not_hide_the_others(empty_store: Store) -> None:
    add_run(empty_store, "points", "ablation")
    for decile in range(1, 10):
        add_point(empty_store, f"d{decile}", run_id="points", set=f"decile:{decile}", delta=0.1 * decile)
    add_point(empty_store, "d10", run_id="points", set="decile:10", delta=3e15, stderr=5e15)
    chart = FIGURES["ablation"].draw(empty_store).to_dict()
    *others, last = chart["datasets"][chart["data"]["name"]]
    cap = 1e6 * last["baseline"]
    assert (last["drawn"], last["low"], last["high"], last["beyond"], last["delta"]) == (cap, cap, cap, "beyond", 3e15)
    assert [row["drawn"] for row in others] == [row["delta"] for row in others]
    scale = chart["layer"][1]["encoding"]["y"]["scale"]
    assert scale["domain"][1] <= 1.5 * cap
    assert scale["constant"] <= 0.25, "a tenth of the smallest damage is not at zero"
    assert last["value_beyond"] == "3e+15"
    assert chart["title"]["subtitle"][-1] == "▲: more than 1e+06 times the baseline, with the increase"


def test_damage_of_two_sizes_has_two_heights(empty_store: Store) -> None:
    """Perplexities of a thousand and of a hundred thousand are both ruinous, and not the same."""
    add_run(empty_store, "points", "ablation")
    deltas = [0.02, 0.5, 30.0, 4e4, 7e5, 9e6]
    for decile, delta in enumerate(deltas, start=1):
        add_point(empty_store, f"d{decile}", run_id="points", set=f"decile:{decile}", delta=delta, stderr=0.01)
    chart = FIGURES["ablation"].draw(empty_store).to_dict()
    scene = vl_convert.vegalite_to_scenegraph(json.dumps(chart))["scenegraph"]
    heights = sorted({round(y, 1) for y in _symbols(scene)}, reverse=True)
    assert len(heights) == len(deltas)
    assert all(before - after > 5 for before, after in itertools.pairwise(heights))


def _symbols(node: dict[str, Any]) -> list[float]:
    own = (
        [item["y"] for item in node.get("items", [])]
        if node.get("marktype") == "symbol" and node.get("role") == "mark"
        else []
    )
    return own + [y for item in node.get("items", []) for y in _symbols(item)]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_measured_is_one_line(store: Store, name: str) -> None:
    with pytest.raises(ScannerError, match=r"the store has no run of 'org/other'.*org/model"):
        FIGURES[name].draw(store, model="org/other")
    with pytest.raises(ScannerError, match="unknown run 'x'"):
        FIGURES[name].draw(store, run="x")


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_role_that_is_not_there_is_one_line(store: Store, name: str) -> None:
    with pytest.raises(ScannerError, match="role"):
        FIGURES[name].draw(store, role="router")


def test_slices_are_drawn_in_the_order_of_their_deciles(store: Store) -> None:
    chart = FIGURES["slicing"].draw(store).to_dict()
    values = chart["datasets"][chart["data"]["name"]]
    assert [(row["what"], row["label"], row["delta"], row["high"]) for row in values] == [
        ("after norm", str(decile), 2.0 * decile, 2.0 * decile + 0.5) for decile in range(1, 11)
    ]
    assert chart["layer"][0]["encoding"]["x"]["sort"] == [str(decile) for decile in range(1, 11)]


def test_slices_of_a_single_window_have_no_error_and_are_drawn(empty_store: Store) -> None:
    add_run(empty_store, "slices", "slicing")
    add_point(empty_store, "s", run_id="slices", set="slice:1", roles="after norm", delta=2.0, stderr=None)
    chart = FIGURES["slicing"].draw(empty_store).to_dict()
    (row,) = chart["datasets"][chart["data"]["name"]]
    assert (row["low"], row["delta"], row["high"]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_store_without_runs_says_what_measures_them(empty_store: Store, name: str) -> None:
    with pytest.raises(ScannerError, match=r"rmtscan (activations|ablate|slicing) REF --text FILE"):
        FIGURES[name].draw(empty_store)


@pytest.mark.parametrize(
    ("name", "kind", "point"), [("ablation", "ablation", "decile:1"), ("slicing", "slicing", "slice:1")]
)
def test_a_run_that_holds_only_its_baseline_is_none(empty_store: Store, name: str, kind: str, point: str) -> None:
    """The run was interrupted, or every point failed: it hides no earlier one."""
    add_run(empty_store, "bare", kind, hours=1)
    add_point(empty_store, "base", run_id="bare", set="none", removed=0, roles="", layers="", delta=0.0)
    with pytest.raises(ScannerError, match=r"holds no (ablations|slicing): .*rmtscan (ablate|slicing) REF"):
        FIGURES[name].draw(empty_store)
    add_run(empty_store, "good", kind)
    add_point(empty_store, "one", run_id="good", set=point, roles="query", delta=2.0)
    assert [row["run_id"] for row in rows_of(empty_store, "point_runs", kind=kind)] == ["good"]
    assert FIGURES[name].draw(empty_store).to_dict()["datasets"]


@pytest.mark.parametrize(("name", "sets"), [("ablation", "decile"), ("slicing", "slice")])
def test_no_line_spans_deciles_that_were_not_measured(empty_store: Store, name: str, sets: str) -> None:
    add_run(empty_store, "run", "ablation" if name == "ablation" else "slicing")
    for decile in (1, 2, 5, 6, 7, 10):
        add_point(empty_store, f"d{decile}", set=f"{sets}:{decile}", roles="after norm", delta=1.0 * decile)
    chart = FIGURES[name].draw(empty_store).to_dict()
    scene = vl_convert.vegalite_to_scenegraph(json.dumps(chart))["scenegraph"]
    assert sorted(_lines(scene)) == [1, 2, 3]


def _lines(node: dict[str, Any]) -> list[int]:
    """Return the number of points of every line that is drawn."""
    own = [len(node["items"])] if node.get("marktype") == "line" and node.get("role") == "mark" else []
    return own + [count for item in node.get("items", []) for count in _lines(item)]
