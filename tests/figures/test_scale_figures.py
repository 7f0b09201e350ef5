"""Figures `decompose`, `scale` and `histograms_by_role`: their data agrees with the query, or with the matrices."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from scanner.errors import ScannerError
from scanner.figures import FIGURES
from scanner.figures.decompose import COLORS, PARTS
from scanner.figures.scale import scale_law
from scanner.figures.selection import choose_matrix, vectors
from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan

from .stores import BASE, column, named_table


def stacked(specification: dict[str, object]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Parts of the bars, by bar, part of the spectrum and side."""
    found: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for side in "uv":
        for part in PARTS:
            for row in named_table(specification, f"{side}_{part.replace(' ', '_')}"):
                assert row["part"] == part
                found[row["bar"], part, side][row["what"]] = row["value"]
                assert sum(row.get(name) or 0.0 for name in COLORS) == pytest.approx(row["sum"], abs=1e-4)
    return found


def test_bars_are_the_parts_of_the_deviation_by_role(pair_store: Store) -> None:
    drawn = stacked(FIGURES["decompose"].draw(pair_store, model=BASE).to_dict())
    answer = pair_store.query("decompose", model=BASE, layers=False).to_pylist()
    assert len(answer) == len(drawn) == 18
    for row in answer:
        parts = drawn[row["role"], row["part"], row["side"]]
        assert parts["scale"] == pytest.approx(row["scale"], abs=1e-4)
        assert parts["direction"] == pytest.approx(row["direction"], abs=1e-4)
        # The left vectors of query and value consist of heads, and no other vectors here.
        assert ("head structure" in parts) == (row["role"] != "mlp_up" and row["side"] == "u")
    assert drawn["query", "small end", "u"]["head structure"] > 0.05


def test_bars_of_a_role_are_its_layers_and_of_a_layer_its_heads(pair_store: Store) -> None:
    layers = stacked(FIGURES["decompose"].draw(pair_store, model=BASE, role="value").to_dict())
    assert {float(bar) for bar, _, _ in layers} == {0, 2, 5}
    [row] = [
        row
        for row in pair_store.query("decompose", model=BASE, role="value").to_pylist()
        if (row["layer"], row["part"], row["side"]) == (2, "large end", "v")
    ]
    [parts] = [
        parts for (bar, part, side), parts in layers.items() if (float(bar), part, side) == (2, "large end", "v")
    ]
    assert parts == pytest.approx({"scale": row["scale"], "direction": row["direction"]}, abs=1e-4)
    heads = stacked(FIGURES["decompose"].draw(pair_store, model=BASE, role="query", layer=1).to_dict())
    assert {float(bar) for bar, _, _ in heads} == {*range(12)}
    assert all({*parts} == {"scale", "direction"} for parts in heads.values()), "a slice has no heads"


def test_the_laws_are_those_of_the_matrix(pair_store: Store) -> None:
    for role in ("query", "mlp_up"):
        matrix = choose_matrix(pair_store, model=BASE, role=role, layer=2)
        law = np.array(scale_law(matrix, vectors(pair_store, matrix)))
        assert (np.diff(law[:, 0]) >= 0.0).all()
        area = np.sum((law[1:, 1] + law[:-1, 1]) / 2 * np.diff(law[:, 0]))
        # From the smallest singular value on, and without parts of the support that hold one value.
        assert area == pytest.approx(1.0, abs=0.03)
        assert (law[-1, 0], law[-1, 1]) == (matrix.scale_upper, 0.0)
        chart = FIGURES["scale"].draw(pair_store, model=BASE, role=role, layer=2).to_dict()
        assert column(named_table(chart, "null"), "nu").max() == pytest.approx(matrix.scale_upper, rel=1e-4)
        assert column(named_table(chart, "law"), "nu").max() == pytest.approx(matrix.mp_upper, rel=1e-4)
        assert column(named_table(chart, "spectrum"), "count").sum() == 384


@pytest.mark.parametrize("layer", [None, 2])
def test_p_and_p_scale_along_the_spectrum_are_means_over_ranks_and_blocks(pair_store: Store, layer: int | None) -> None:
    chart = FIGURES["scale"].draw(pair_store, model=BASE, role="query", layer=layer).to_dict()
    where = f"model = '{BASE}' AND role = 'query' AND head IS NULL" + ("" if layer is None else f" AND layer = {layer}")
    rows = pair_store.sql(
        f"SELECT layer, k, u_p AS p, u_p_scale AS p_scale, u_p_within AS p_within FROM vectors WHERE {where}"
    )
    drawn = named_table(chart, "p_u")
    assert {row["matrices"] for row in drawn} == {3.0 if layer is None else 1.0}
    for name in ("p", "p_scale", "p_within"):
        values = np.zeros((6, 384))
        np.add.at(values, (rows["layer"].to_numpy(), rows["k"].to_numpy()), rows[name].to_numpy())
        binned = values.sum(axis=0).reshape(48, 8).mean(axis=1) / drawn[0]["matrices"]
        assert column(drawn, name) == pytest.approx(binned, rel=1e-4)
    assert all(row["low"] <= row["p"] <= row["high"] for row in drawn)
    assert "p_within_v" not in str(chart), "the right vectors of a query have no heads"


def test_histograms_are_densities_of_all_blocks_in_absolute_units(pair_store: Store) -> None:
    chart = FIGURES["histograms_by_role"].draw(pair_store, model=BASE).to_dict()
    for role in ("query", "value", "mlp_up"):
        outline = named_table(chart, f"histograms_{role}")
        assert {row["role"] for row in outline} == {role}
        nu, density = column(outline, "nu"), column(outline, "density")
        values = pair_store.sql(
            f"SELECT singular_value AS s FROM vectors WHERE model = '{BASE}' AND role = '{role}' AND head IS NULL"
        )["s"].to_numpy()
        area = np.sum((density[1:] + density[:-1]) / 2 * np.diff(nu))
        assert area == pytest.approx(np.mean(values < nu[-1]), abs=1e-3)
        first = nu[2]  # the first bin is from nu[1] to nu[2]
        assert density[1] * first == pytest.approx(np.mean(values < first), abs=1e-3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


def test_without_a_scale_null_the_figures_say_why(store: Store) -> None:
    add_scan(store, "one", [Matrix()], model="org/old")
    add_scan(store, "two", [Matrix(more={"scale_failure": "it ran away"})], model="org/failed")
    for name in ("decompose", "scale"):
        with pytest.raises(ScannerError, match="no scale null: scan again"):
            FIGURES[name].draw(store, model="org/old")
        with pytest.raises(ScannerError, match="no scale null: it ran away"):
            FIGURES[name].draw(store, model="org/failed")


def test_the_heads_of_a_role_that_are_not_scanned_are_an_error(pair_store: Store) -> None:
    with pytest.raises(ScannerError, match="no layer '5'"):
        FIGURES["decompose"].draw(pair_store, model=BASE, role="query", layer=5)
    with pytest.raises(ScannerError, match="did you mean 'query'"):
        FIGURES["decompose"].draw(pair_store, model=BASE, role="qery")
