"""Figures of activations where shapes, runs and zeros differ within a role."""

from pathlib import Path
from typing import Any

import pytest

from scanner.figures.activations import activation_overlap, activation_spectrum
from scanner.store import Store, open_store
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
    assert [panel["title"]["text"] for panel in chart["concat"]] == ["mlp down, 100 inputs", "mlp down, 10000 inputs"]
    highest = []
    for panel, value in zip(chart["concat"], (0.3, 0.08), strict=True):
        band, _, dots = (chart["datasets"][layer["data"]["name"]] for layer in panel["vconcat"][0]["layer"])
        assert [row["overlap"] for row in dots] == pytest.approx([value])
        highest.append(band[0]["high"])
    assert highest[0] > 0.3
    assert highest[1] < 0.08


def test_the_caption_says_what_was_read_and_in_how_many_runs(store: Store) -> None:
    def caption() -> Any:
        return activation_overlap(store).to_dict()["title"]["subtitle"][2]

    row = {"run_id": "run", "kind": "activations", "model": "org/model", "dataset": "novel.txt", "tokens": 12_345}
    store.write_rows("experiments", "run", table("experiments", [row]), method={})
    add_overlaps(store, "run", [0.3])
    add_overlaps(store, "run", [0.3], tensor="u", layer=1)
    assert caption() == "novel.txt: 12,345 tokens"
    row |= {"run_id": "trial", "dataset": "trial.txt", "tokens": 500}
    store.write_rows("experiments", "trial", table("experiments", [row]), method={})
    add_overlaps(store, "trial", [0.9])
    assert caption() == "novel.txt, trial.txt: 500 to 12,345 tokens, the newest of 2 runs for each matrix"


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
    drawn = [(row["number"], row["eigenvalue"]) for row in chart["datasets"][chart["data"]["name"]]]
    assert drawn == [(1, pytest.approx(100.0)), (2, pytest.approx(100.0))]
