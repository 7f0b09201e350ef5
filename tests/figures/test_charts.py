"""The data of the figures agrees with the store, or with values computed from the matrices by other means."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrix
from scanner.figures import FIGURES
from scanner.figures.pairs import _both, blocks, pairs
from scanner.figures.theme import PAPER
from scanner.figures.vector import _null, largest_distance, null_density
from scanner.rmt.ks_null import KsNull, simulate
from scanner.store import Store, open_store
from tests.store.rows import Matrix, Pair, add_comparison, add_scan

from .stores import BASE, LAYERS, TUNED, column, named_table, tables


def test_spectra_by_role_are_those_of_the_query(pair_store: Store) -> None:
    chart = FIGURES["spectra_by_role"].draw(pair_store, model=BASE).to_dict()
    answer = {(row["role"], row["k"]): row for row in pair_store.query("spectrum_by_role", model=BASE).to_pylist()}
    drawn = [row for table in tables(chart) if "role" in table[0] for row in table]
    assert {row["role"] for row in drawn} == {"query", "value", "mlp_up"}
    for row in drawn:
        assert row["s"] == pytest.approx(answer[row["role"], row["k"]]["singular_value"], rel=1e-4)
    # Both ends are there, every rank of them that the axis has; a note counts the others.
    for role in ("query", "mlp_up"):
        ranks = sorted(row["k"] for row in drawn if row["role"] == role)
        assert ranks[:20] == [*range(20)]
        below = sum(row["singular_value"] < 0.01 for (name, _), row in answer.items() if name == role)
        assert ranks[-15:] == [*range(369 - below, 384 - below)]
        assert (below > 0) == (role == "query")
    notes = [row["note"] for table in tables(chart) for row in table if "note" in row]
    assert any(note.startswith(f"▼ {_below(answer, 'query')}, down to ") for note in notes)


def _below(answer: dict[tuple[str, int], dict[str, float]], role: str) -> int:
    return sum(row["singular_value"] < 0.01 for (name, _), row in answer.items() if name == role)


def test_the_band_of_spectra_is_one_standard_deviation(pair_store: Store) -> None:
    chart = FIGURES["spectra_by_role"].draw(pair_store, model=BASE, role="mlp_up").to_dict()
    drawn = [row for table in tables(chart) for row in table if "low" in row]
    values = pair_store.sql(
        f"SELECT k, singular_value / (sigma * sqrt(greatest(rows, cols))) AS s FROM vectors JOIN matrices USING "
        f"(scan_id, tensor, role, rows, cols) WHERE vectors.model = '{BASE}' AND role = 'mlp_up'"
    ).to_pylist()
    for row in drawn[::17]:
        mine = [one["s"] for one in values if one["k"] == row["k"]]
        assert len(mine) == len(LAYERS)
        assert (row["low"], row["high"]) == pytest.approx(
            (np.mean(mine) - np.std(mine, ddof=1), np.mean(mine) + np.std(mine, ddof=1)), rel=1e-3
        )


def test_p_along_the_spectrum_is_the_mean_over_ranks_and_blocks(pair_store: Store) -> None:
    chart = FIGURES["pvalues_by_role"].draw(pair_store, model=BASE, role="mlp_up", layer=2, side="u").to_dict()
    [drawn] = [table for table in tables(chart) if table and "mean" in table[0]]
    rows = pair_store.sql(
        f"SELECT layer, k, u_p_local AS p FROM vectors WHERE model = '{BASE}' AND role = 'mlp_up'"
    ).to_pylist()
    p = {
        layer: np.array([row["p"] for row in sorted(rows, key=lambda r: r["k"]) if row["layer"] == layer])
        for layer in LAYERS
    }
    binned = {layer: values.reshape(64, 6).mean(axis=1) for layer, values in p.items()}
    assert column(drawn, "block") == pytest.approx(binned[2], rel=1e-4)
    assert column(drawn, "mean") == pytest.approx(np.mean([*binned.values()], axis=0), rel=1e-4)
    assert column(drawn, "low") == pytest.approx(np.quantile([*binned.values()], 0.1, axis=0), rel=1e-3)
    control = pair_store.sql("SELECT avg(u_p_local) AS p FROM controls WHERE rows = 1536 AND cols = 384")["p"][
        0
    ].as_py()
    assert column(drawn, "control").mean() == pytest.approx(control, rel=1e-3)


def test_p_above_chance_is_not_cut_off(pair_store: Store) -> None:
    """Where some vectors share a mean, orthogonality pushes the others away from it: blocks of MiniLM reach 0.8."""
    chart = FIGURES["pvalues_by_role"].draw(pair_store, model=BASE).to_dict()
    drawn = [row for table in tables(chart) if table and "mean" in table[0] for row in table]
    highest = max(row[name] for row in drawn for name in ("mean", "high", "block"))
    assert highest > 0.75
    tops = {
        layer["encoding"]["y"]["scale"]["domain"][1]
        for panel in chart["concat"]
        for layer in panel["layer"]
        if "scale" in layer["encoding"]["y"]
    }
    assert tops
    assert all(top >= highest for top in tops)


def test_depth_shows_the_mean_of_both_sides_and_of_one(pair_store: Store) -> None:
    rows = pair_store.query("layer_trend", model=BASE).to_pylist()
    for side, name in ((None, "p"), ("u", "u_p"), ("v", "v_p")):
        chart = FIGURES["depth"].draw(pair_store, model=BASE, side=side).to_dict()
        drawn = [row for panel in range(3) for row in named_table(chart, f"depth_{panel}")]
        found = {(row["role"], row["layer"]): row["p"] for row in drawn}
        assert found == pytest.approx({(row["role"], row["layer"]): row[name] for row in rows}, rel=1e-4)


def test_the_grid_of_heads_is_that_of_the_query(pair_store: Store) -> None:
    chart = FIGURES["heads"].draw(pair_store, model=BASE).to_dict()
    answer = pair_store.query("head_trend", model=BASE).to_pylist()
    for role in ("query", "key"):
        drawn = named_table(chart, f"heads_{role}")
        assert [row["layer"] for row in drawn] == [0, 1]
        for row in drawn:
            expected = [one["p"] for one in answer if (one["role"], one["layer"]) == (role, row["layer"])]
            assert row["p"] == pytest.approx(expected, rel=1e-3)
            assert len(row["p"]) == 12


def test_the_map_of_outliers_holds_the_numbers_of_the_store(pair_store: Store) -> None:
    chart = FIGURES["outliers"].draw(pair_store, model=BASE).to_dict()
    drawn = [row for table in tables(chart) for row in table]
    for row in pair_store.sql(f"SELECT * FROM matrices WHERE model = '{BASE}' AND head IS NULL").to_pylist():
        for side in ("left", "right"):
            [cell] = [
                one for one in drawn if (one["side"], one["layer"], one["role"]) == (side, row["layer"], row["role"])
            ]
            count = row[f"outliers_{side}"]
            no_left = side == "left" and row["rows"] == row["cols"]
            assert cell["text"] == ("–" if no_left else str(count))
            assert cell.get("percent") == (None if no_left else pytest.approx(100 * count / 384, rel=1e-4))


# ---- one vector, read again


def _matrix(folder: Path, role: str, layer: int) -> np.ndarray:
    checkpoint = open_checkpoint(str(folder), identify=False)
    [ref] = list_matrices(checkpoint, Selection(only=(role,), layers=(layer,))).matrices
    return read_matrix(checkpoint.source, ref).numpy().astype(np.float64)


@pytest.mark.parametrize(("side", "k"), [("v", 0), ("u", 383)])
def test_the_vector_that_is_read_again_has_the_distance_that_was_stored(
    pair_store: Store, minilm: Path, side: str, k: int
) -> None:
    chart = FIGURES["vector"].draw(pair_store, model=BASE, role="mlp_up", layer=2, side=side, k=k).to_dict()
    [stored] = pair_store.sql(
        f"SELECT {side}_ks AS d FROM vectors WHERE model = '{BASE}' AND role = 'mlp_up' AND layer = 2 AND k = {k}"
    )["d"].to_pylist()
    told = [row["text"] for table in tables(chart) for row in table if str(row.get("text", "")).startswith("D = ")]
    assert told == [f"D = {stored:.3g}"]
    u, _, vt = np.linalg.svd(_matrix(minilm, "mlp_up", 2), full_matrices=False)
    entries = vt[k] if side == "v" else u[:, k]
    scaled = np.sort(entries * np.sqrt(len(entries)))
    assert largest_distance(scaled).d == pytest.approx(stats.kstest(scaled, "norm").statistic)
    assert largest_distance(scaled).d == pytest.approx(stored, abs=1e-5)


def test_the_largest_distance_is_where_the_two_functions_are_that_far_apart() -> None:
    scaled = np.sort(np.random.default_rng(1).standard_normal(200)) * 1.3 + 0.2
    found = largest_distance(scaled)
    assert abs(found.measured - found.expected) == pytest.approx(found.d)
    assert stats.norm.cdf(found.at) == pytest.approx(found.expected)
    assert found.d == pytest.approx(stats.kstest(scaled, "norm").statistic)


def test_the_density_of_the_null_is_that_of_simulated_vectors() -> None:
    at, density = null_density(KsNull(), 256, 0.14)
    width = at[1] - at[0]
    assert np.sum(density) * width == pytest.approx(1.0, abs=2e-3)
    drawn = simulate(256, 20_000, seed=5)
    assert np.sum(at * density) * width == pytest.approx(float(drawn.mean()), rel=0.01)
    assert np.sum(density[at < 0.05]) * width == pytest.approx(float(np.mean(drawn < 0.05)), abs=0.02)


# ---- pairs


def test_pairs_show_both_spectra_of_the_matrix_that_changed_most(pair_store: Store) -> None:
    chart = FIGURES["pair_spectra"].draw(pair_store, role="value").to_dict()
    assert chart["title"]["text"] == "Before and after: value, layer 5"
    drawn = max((table for table in tables(chart) if table and "after" in table[0]), key=len)
    for name, model in (("before", BASE), ("after", TUNED)):
        where = f"model = '{model}' AND role = 'value' AND layer = 5"
        rows = pair_store.sql(f"SELECT singular_value AS s, v_p_local AS p FROM vectors WHERE {where} ORDER BY k")
        ranks = column(drawn, "k").astype(int)
        assert column(drawn, name) == pytest.approx(rows["s"].to_numpy()[ranks], rel=1e-4)
        assert column(drawn, f"p_{name}") == pytest.approx(rows["p"].to_numpy()[ranks], rel=1e-4)
    assert column(drawn, "change") == pytest.approx(
        100 * (column(drawn, "after") / column(drawn, "before") - 1), abs=0.02
    )


def test_overlaps_are_those_of_the_two_matrices(pair_store: Store, minilm: Path, minilm_tuned: Path) -> None:
    chart = FIGURES["overlap"].draw(pair_store, base=BASE, tuned=TUNED, role="mlp_up", layer=5).to_dict()
    drawn = np.array([row["o"] for row in named_table(chart, "overlap")])
    _, _, v0 = np.linalg.svd(_matrix(minilm, "mlp_up", 5), full_matrices=False)
    _, _, v = np.linalg.svd(_matrix(minilm_tuned, "mlp_up", 5), full_matrices=False)
    squared = (v @ v0.T) ** 2
    expected = np.sqrt(squared.reshape(96, 4, 96, 4).sum(axis=(1, 3)) / 4)
    assert drawn == pytest.approx(expected, abs=2e-3)


def test_a_model_overlaps_with_itself_on_the_diagonal(pair_store: Store) -> None:
    chart = FIGURES["overlap"].draw(pair_store, base=BASE, tuned=BASE, role="query", layer=0).to_dict()
    drawn = np.array([row["o"] for row in named_table(chart, "overlap")])
    assert drawn == pytest.approx(np.eye(96), abs=1e-6)


def test_cells_hold_overlaps_or_shares_of_subspaces() -> None:
    products = np.linalg.qr(np.random.default_rng(0).standard_normal((10, 10)))[0]
    assert blocks(products, 10) == pytest.approx(np.abs(products))
    taken = blocks(products, 4)
    assert taken.shape == (4, 4)
    # Every vector's squared overlaps with a whole basis add up to 1.
    assert np.sum(taken**2, axis=1) == pytest.approx(np.ones(4))


def test_two_revisions_of_a_model_are_not_one(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    for number, revision in enumerate(("first", "second")):
        add_scan(store, revision, [Matrix(tensor=revision)], model="org/run", revision=revision, hours=number)
    add_comparison(store, "p", [Pair()], base="org/run", tuned="org/run", scans=("first", "second"))
    before, after = _both(store, "org/run", None)
    assert [matrix.scan_id for matrix in (*before, *after)] == ["first", "second"]


def test_a_comparison_of_some_matrices_hides_none_of_the_others(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    whole = [Pair(tensor=name, layer=layer, more={"relative_change": 0.1 + layer}) for layer, name in enumerate("ab")]
    add_comparison(store, "whole", whole, hours=1)
    add_comparison(store, "some", [Pair(tensor="a", layer=0, more={"relative_change": 5.0})], hours=2)
    found = [(pair.tensor, pair.pair_id, pair.relative_change) for pair in pairs(store, None, None)]
    assert found == [("a", "some", 5.0), ("b", "whole", 1.1)]
    assert FIGURES["pair_spectra"].draw(store, layer=1).to_dict()["title"]["text"] == "Before and after: query, layer 1"


def test_the_legend_of_overlaps_says_what_a_cell_is(pair_store: Store) -> None:
    chart = FIGURES["overlap"].draw(pair_store, role="query", layer=0).to_dict()
    [view] = [view for view in (chart, *chart.get("layer", [])) if "color" in view.get("encoding", {})]
    assert view["encoding"]["color"]["legend"]["title"] == ["√( Σ (v · v′)² / 4 )", "over 4 × 4 ranks"]


def test_a_distance_within_the_axis_stands_where_it_is_and_another_at_the_end_with_an_arrow() -> None:
    """From the end of the drawn density on, all distances were drawn at the end of the axis, beyond their values."""
    reach = 1.15 * 2.2 / np.sqrt(576)
    for d, arrow in ((0.0941, False), (0.98 * reach, False), (0.99 * reach, True), (0.4, True)):
        chart = _null(KsNull(), 576, d, 1e-5, PAPER, 90.0).to_dict()
        [mark] = [row for rows in tables(chart) for row in rows if "d" in row]
        assert (mark["x"] == pytest.approx(d, rel=1e-4)) == (not arrow)
        assert mark["d"].endswith("→") == arrow
        assert mark["x"] < reach
