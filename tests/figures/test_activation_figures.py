"""Figures of activations where shapes, runs and zeros differ within a role."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.errors import ScannerError
from scanner.figures import FIGURES
from scanner.figures.activations import activation_overlap, activation_spectrum, overlap_map, overlap_training
from scanner.figures.sizing import measured
from scanner.store import Store, open_store
from tests.figures.stores import tables
from tests.figures.texts import overlapping
from tests.store.test_experiment_queries import add_overlaps, add_run, table


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "store"), create=True)
    add_run(store, "run", "activations")
    return store


def test_matrices_of_two_widths_have_a_band_each(store: Store) -> None:
    add_overlaps(store, "run", [0.3], role="mlp_down", cols=100)
    add_overlaps(store, "run", [0.08], role="mlp_down", cols=10_000, tensor="u", layer=1)
    chart = activation_overlap(store).to_dict()
    assert [panel["title"]["text"] for panel in chart["concat"]] == ["mlp_down, 100 inputs", "mlp_down, 10000 inputs"]
    highest = []
    for panel, value in zip(chart["concat"], (0.3, 0.08), strict=True):
        band, _, dots = (chart["datasets"][layer["data"]["name"]] for layer in panel["vconcat"][0]["layer"])
        assert [row["overlap"] for row in dots] == pytest.approx([value])
        highest.append(band[0]["high"])
    assert highest[0] > 0.3
    assert highest[1] < 0.08


def test_the_caption_says_what_was_read_and_in_how_many_runs(store: Store) -> None:
    def caption() -> Any:
        return " ".join(activation_overlap(store).to_dict()["title"]["subtitle"][2:])

    row = {"run_id": "run", "kind": "activations", "model": "org/model", "dataset": "novel.txt", "tokens": 12_345}
    store.write_rows("experiments", "run", table("experiments", [row]), method={})
    add_overlaps(store, "run", [0.3])
    add_overlaps(store, "run", [0.3], tensor="u", layer=1)
    assert caption().startswith("novel.txt: 12,345 tokens gray: 99.7 % of random vectors")
    row |= {"run_id": "trial", "dataset": "trial.txt", "tokens": 500}
    store.write_rows("experiments", "trial", table("experiments", [row]), method={})
    add_overlaps(store, "trial", [0.9])
    assert caption().startswith(
        "novel.txt, trial.txt: 500 to 12,345 tokens, the newest of 2 runs for each matrix gray:"
    )


def test_eigenvalues_never_rise_where_those_of_one_layer_end(store: Store) -> None:
    for layer, values in enumerate(([1.0, 1.0, 0.0, 0.0], [1e4] * 4)):
        add_overlaps(store, "run", [0.5], tensor=f"t{layer}", layer=layer)
        rows = [
            {"run_id": "run", "model": "org/model", "tensor": f"t{layer}", "layer": layer, "role": "query"}
            | {"index": i, "eigenvalue": value, "centred": True}
            for i, value in enumerate(values)
        ]
        store.write_rows("activation_spectra", f"run-{layer}", table("activation_spectra", rows), method={})
    chart = activation_spectrum(store).to_dict()
    drawn = [(row["number"], row["eigenvalue"]) for rows in tables(chart) for row in rows]
    assert drawn == [(1, pytest.approx(100.0)), (2, pytest.approx(100.0))]


def test_eigenvalues_that_are_zero_within_rounding_are_counted_and_not_drawn(store: Store) -> None:
    """A norm leaves one direction without variance: its eigenvalue, 1e-15 of the largest, took most of the axis."""
    for layer in (0, 1):
        add_overlaps(store, "run", [0.5], tensor=f"t{layer}", layer=layer)
        rows = [
            {"run_id": "run", "model": "org/model", "tensor": f"t{layer}", "layer": layer, "role": "query"}
            | {"index": i, "eigenvalue": value * (1 + 3 * layer), "centred": True}
            for i, value in enumerate([10.0, 1.0, 1e-3, 4e-16 if layer else 1e-16])
        ]
        store.write_rows("activation_spectra", f"run-{layer}", table("activation_spectra", rows), method={})
    chart = activation_spectrum(store).to_dict()
    [panel] = chart["concat"]
    drawn = [row for rows in tables(chart) for row in rows]
    assert [row["eigenvalue"] for row in drawn] == pytest.approx([20.0, 2.0, 2e-3])  # the geometric mean of 1 and 4
    assert (drawn[0]["low"], drawn[0]["high"]) == pytest.approx((13.0, 37.0))  # the middle 80 % of 10 and 40
    assert panel["layer"][-1]["encoding"]["y"]["scale"]["domain"][0] > 1e-4
    caption = " ".join(chart["title"]["subtitle"])
    assert caption.endswith("(band) of 2 matrices of a role zero up to rounding, not drawn: 1 of 4 (query)")


def test_vectors_beyond_the_band_are_drawn_however_many_there_are_within(store: Store) -> None:
    add_overlaps(store, "run", [0.1], rows=3000, cols=3000)
    limits = store.query("overlap_vs_region").to_pylist()[0]
    values = [limits["random_middle"] + 1e-9 * i for i in range(3000)]
    for place in (7, 1501, 2400):
        values[place] = 0.9
    add_overlaps(store, "run", values, rows=3000, cols=3000)
    chart = activation_overlap(store).to_dict()
    drawn = [row for rows in tables(chart) for row in rows if "overlap" in row]
    upper = [row["overlap"] for row in drawn if row["overlap"] > 0.5]
    assert len(upper) == 3
    assert len(drawn) < 400
    assert "of 3,000 vectors, most of them within the band, are left out" in " ".join(chart["title"]["subtitle"])


@pytest.mark.parametrize("name", ["activation_overlap", "overlap_training"])
def test_figures_of_seven_roles_fit_on_a_page(store: Store, name: str) -> None:
    roles = ("query", "key", "value", "attn_out", "mlp_up", "mlp_gate", "mlp_down")
    for model in ("run-step1", "run-step2"):
        for i, role in enumerate(roles):
            add_overlaps(store, model, [0.3] * 20, model=model, role=role, tensor=role, layer=i, rows=20, cols=200)
    given = {"model": "run-step1"} if name == "activation_overlap" else {}
    chart = FIGURES[name].draw(store, width="85mm", **given)
    _, tall = measured(chart)
    assert tall < 240 * 72 / 25.4
    assert overlapping(chart) == []


def test_a_cell_of_a_map_is_the_root_mean_square_in_units_of_random_vectors(store: Store) -> None:
    overlaps = np.abs(np.random.default_rng(0).standard_normal((100, 200))) / np.sqrt(200)
    place = {
        "run_id": "run",
        "model": "org/model",
        "tensor": "t",
        "layer": 3,
        "role": "query",
        "cols": 200,
        "tokens": 5,
    }
    rows = [
        place | {"k": k, "j": j, "overlap": overlaps[k, j], "centred": centred}
        for centred in (True, False)
        for k in range(100)
        for j in range(200)
    ]
    store.write_rows("overlap_maps", "run-3", table("overlap_maps", rows), method={})
    chart = overlap_map(store).to_dict()
    [cells] = tables(chart)
    assert min(cell["k_first"] for cell in cells) == 0
    assert max(cell["k_last"] for cell in cells) == 100
    assert sum((c["k_last"] - c["k_first"]) * (c["j_last"] - c["j_first"]) for c in cells) == 100 * 200
    for cell in cells[::101]:
        k_first, k_last, j_first, j_last = (int(cell[name]) for name in ("k_first", "k_last", "j_first", "j_last"))
        mine = overlaps[k_first:k_last, j_first:j_last]
        assert cell["overlap"] == pytest.approx(np.sqrt(np.mean(mine**2) * 200), rel=6e-3)
    assert chart["title"]["subtitle"] == ["org/model @ r1", "query, layer 3, centered covariance", "5 tokens"]
    with pytest.raises(ScannerError, match="no such map of 'org/model': run 'rmtscan activations REF"):
        overlap_map(store, layer=4)


def test_checkpoints_are_drawn_in_the_order_of_their_steps_or_in_the_given_one(store: Store) -> None:
    for step, value in ((1000, 0.6), (20, 0.2), (300, 0.4)):
        row: dict[str, object] = {
            "run_id": f"r{step}",
            "kind": "activations",
            "model": f"m-step{step}",
            "dataset": "a.txt",
        }
        store.write_rows("experiments", f"r{step}", table("experiments", [row]), method={})
        add_overlaps(store, f"r{step}", [value] * 20, model=f"m-step{step}", rows=20, cols=20)
    chart = overlap_training(store, models="m-step20, m-step300,m-step1000").to_dict()
    band, bars, *_ = chart["concat"][0]["layer"]
    drawn = chart["datasets"][bars["data"]["name"]]
    large = [(row["label"], row["overlap"]) for row in drawn if row["part"] == "large end"]
    assert large == [("20", pytest.approx(0.2)), ("300", pytest.approx(0.4)), ("1000", pytest.approx(0.6))]
    assert bars["encoding"]["x"]["scale"]["domain"] == ["20", "300", "1000"]
    assert " ".join(chart["title"]["subtitle"]) == (
        "3 checkpoints: m-step20 to m-step1000 a.txt gray: 99.7 % of random vectors"
    )
    low, high = band["encoding"]["y"]["scale"]["domain"]
    assert low < 0.2 < 0.6 < high, "no point lies on the frame"
    two = store.query("overlap_training", models="m-step300,m-step20").to_pylist()
    assert [(row["place"], row["model"]) for row in two if row["part"] == "middle"] == [
        (1, "m-step300"),
        (2, "m-step20"),
    ]
    with pytest.raises(ScannerError, match=re.escape("one checkpoint, 'm-step20', and a curve needs two")):
        overlap_training(store, models="m-step20")


def test_the_spread_over_training_is_that_of_the_means_of_matrices(store: Store) -> None:
    means = {0: 0.2, 1: 0.3, 2: 0.7}
    for model in ("m-step1", "m-step2"):
        for layer, mean in means.items():
            values = [mean + 0.01 * (k % 2 - 0.5) for k in range(20)]
            add_overlaps(store, model, values, model=model, rows=20, cols=20, tensor=f"t{layer}", layer=layer)
    found = store.query("overlap_training").to_pylist()
    assert {row["vectors"] for row in found if row["part"] != "middle"} == {3 * 2}
    for row in found:
        assert row["overlap"] == pytest.approx(np.mean([*means.values()]))
        assert row["spread"] == pytest.approx(np.std([*means.values()], ddof=1))
    [alone, *_] = store.query("overlap_training", layer=1).to_pylist()
    assert (alone["overlap"], alone["spread"]) == (pytest.approx(0.3), None)
    chart = overlap_training(store)
    drawn = [row for rows in tables(chart.to_dict()) for row in rows if "part" in row]
    assert all(row["high"] - row["low"] == pytest.approx(2 * row["spread"], abs=1e-4) for row in drawn)
    assert "bars: standard deviation over matrices" in " ".join(chart.to_dict()["title"]["subtitle"])
