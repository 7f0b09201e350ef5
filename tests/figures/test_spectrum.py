"""Figure `spectrum`: its data agrees with the store, and the law and its edges with the formulas."""

import json
from pathlib import Path

import numpy as np
import pytest

from scanner.errors import ScannerError
from scanner.figures import FIGURES
from scanner.figures.selection import choose_matrix
from scanner.figures.spectrum import BULK_BINS, MOST_BINS, bins, histogram, law, law_of_products, steps
from scanner.rmt import product_law
from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan, control

from .stores import BASE, column, named_table

SPECTRUM = FIGURES["spectrum"]


@pytest.mark.parametrize("role", ["query", "mlp_up"])
def test_every_singular_value_is_counted_once_and_the_histogram_has_integral_1(pair_store: Store, role: str) -> None:
    drawn = named_table(SPECTRUM.draw(pair_store, model=BASE, layer=2, role=role).to_dict(), "matrix")
    assert column(drawn, "count").sum() == 384
    widths = column(drawn, "to") - column(drawn, "from")
    assert np.sum(widths * column(drawn, "density")) == pytest.approx(1.0, rel=2e-3)
    stored = pair_store.sql(
        f"SELECT singular_value AS s FROM vectors WHERE model = '{BASE}' AND layer = 2 AND role = '{role}' AND head IS NULL"
    )
    values = stored["s"].to_numpy()
    for row in drawn[:: max(1, len(drawn) // 7)]:
        inside = np.count_nonzero((values >= row["from"] - 1e-6) & (values < row["to"] + 1e-6))
        assert inside == pytest.approx(row["count"], abs=1), "five digits of a border"


@pytest.mark.parametrize("role", ["query", "mlp_up"])
def test_the_law_has_integral_1_and_ends_at_the_edges_of_the_formula(pair_store: Store, role: str) -> None:
    matrix = choose_matrix(pair_store, model=BASE, layer=2, role=role)
    at, density = law(matrix, points=20_001)
    assert np.trapezoid(density, at) == pytest.approx(1.0, abs=1e-5)
    lo, hi = min(matrix.rows, matrix.cols), max(matrix.rows, matrix.cols)
    lower, upper = (matrix.sigma * (np.sqrt(hi) + sign * np.sqrt(lo)) for sign in (-1, 1))
    assert (at[0], at[-1]) == pytest.approx((lower, upper), abs=1e-9)
    # Eq. 1 of the paper, written out.
    nu = at[len(at) // 3]
    s2 = matrix.sigma**2 * hi
    expected = hi / lo / (np.pi * s2 * nu) * np.sqrt((upper**2 - nu**2) * (nu**2 - lower**2))
    assert density[len(at) // 3] == pytest.approx(expected)


def test_the_edges_and_the_numbers_beyond_them_are_written_at_the_rules(pair_store: Store) -> None:
    drawn = SPECTRUM.draw(pair_store, model=BASE, layer=2, role="mlp_up").to_dict()
    upper, lower = named_table(drawn, "edges")
    row = pair_store.sql(
        f"SELECT * FROM matrices WHERE model = '{BASE}' AND layer = 2 AND role = 'mlp_up'"
    ).to_pylist()[0]
    assert (lower["nu"], upper["nu"]) == pytest.approx((row["mp_lower"], row["mp_upper"]), rel=1e-4)
    assert (lower["count"], upper["count"]) == (f"{row['outliers_left']} below", f"{row['outliers_right']} above")


def test_a_square_matrix_has_one_edge(pair_store: Store) -> None:
    assert len(named_table(SPECTRUM.draw(pair_store, model=BASE, layer=0, role="query").to_dict(), "edges")) == 1


@pytest.mark.parametrize("ensemble", ["gaussian", "kaiming_uniform"])
def test_the_control_is_scaled_to_the_matrix(pair_store: Store, ensemble: str) -> None:
    matrix = choose_matrix(pair_store, model=BASE, layer=2, role="mlp_up")
    drawn = SPECTRUM.draw(pair_store, model=BASE, layer=2, role="mlp_up", ensemble=ensemble)
    outline = named_table(drawn.to_dict(), "control")
    # A random matrix of the same sigma fills the same bulk: nothing of it lies more than a bin outside.
    width = (matrix.mp_upper - matrix.mp_lower) / BULK_BINS
    nu = column(outline, "nu")
    assert matrix.mp_lower - 1.01 * width <= nu.min()
    assert nu.max() <= matrix.mp_upper + 1.01 * width
    assert np.trapezoid(column(outline, "density"), nu) == pytest.approx(1.0, abs=2e-3)
    assert f"control ({ensemble.replace('_', ' ')})" in str(drawn.to_dict())


def test_a_control_that_is_not_there_is_an_error_that_names_those_that_are(pair_store: Store) -> None:
    with pytest.raises(ScannerError, match="did you mean 'gaussian'"):
        SPECTRUM.draw(pair_store, model=BASE, layer=2, role="query", ensemble="gausian")


def test_one_head_is_drawn_from_the_scan_of_heads(pair_store: Store) -> None:
    chart = SPECTRUM.draw(pair_store, model=BASE, layer=1, role="key", head=3).to_dict()
    assert column(named_table(chart, "matrix"), "count").sum() == 32
    assert chart["title"]["text"] == "key, layer 1, head 3"


def test_bins_meet_both_edges_and_cover_whatever_lies_outside() -> None:
    borders = bins(0.5, 1.5, 0.31, 4.2)
    assert np.isclose(borders[:, None], [0.5, 1.5]).any(axis=0).all()
    assert borders[0] <= 0.31
    assert borders[-1] > 4.2
    assert histogram(np.array([0.31, 1.0, 4.2]), borders).counts.sum() == 3


def test_a_singular_value_far_away_takes_one_wide_bin() -> None:
    borders = bins(0.5, 1.5, 0.4, 5000.0)
    assert len(borders) <= MOST_BINS + 1
    assert histogram(np.array([0.4, 1.0, 5000.0]), borders).counts.sum() == 3


def test_the_outline_of_a_histogram_encloses_what_it_counts() -> None:
    outline = steps(histogram(np.array([0.6, 0.7, 1.4]), bins(0.5, 1.5, 0.5, 1.5)))
    assert np.trapezoid(column(outline, "density"), column(outline, "nu")) == pytest.approx(1.0)


def test_the_words_at_the_lower_edge_stay_inside_the_frame(pair_store: Store) -> None:
    drawn = SPECTRUM.draw(pair_store, model=BASE, layer=2, role="mlp_up").to_dict()
    matrix = choose_matrix(pair_store, model=BASE, layer=2, role="mlp_up")
    [begin, end] = drawn["layer"][0]["encoding"]["x"]["scale"]["domain"]
    texts = [layer["mark"] for layer in drawn["layer"] if layer["mark"]["type"] == "text" and "dx" in layer["mark"]]
    [side] = {mark["align"] for mark in texts[2:4]}
    width = drawn["width"]
    needed = 0.42 * texts[2]["fontSize"] * len(f"{matrix.outliers_left} below") + 3
    assert side == "left" or (matrix.mp_lower - begin) / (end - begin) * width >= needed
    assert (end - matrix.mp_upper) / (end - begin) * width >= needed


def test_a_product_of_a_head_is_compared_with_the_law_of_products(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = np.linalg.svd(random.normal(size=(96, 32)) @ random.normal(size=(32, 80)), compute_uv=False)[:32]
    sigma = product_law.sigma_of_median(values, 96, 80)
    lower, upper = product_law.singular_value_edges(sigma, 96, 80, 32)
    more = {"sigma": sigma, "mp_lower": lower, "mp_upper": upper}
    store = open_store(str(tmp_path / "store"), create=True)
    product = Matrix(role="qk", head=0, rows=96, cols=80, singular_values=values.tolist(), more=more)
    add_scan(store, "a", [product])
    store.write_control(
        control(96, 80, singular_values=[1.0] * 80, u_p=[0.5] * 80, v_p=[0.5] * 80), 96, 80, "gaussian", 0
    )
    drawn = SPECTRUM.draw(store, role="qk", head=0).to_dict()
    legend = json.dumps(drawn)
    assert "law of random products" in legend
    assert "Marchenko" not in legend
    assert "control" not in legend
    chosen = choose_matrix(store, model=None, role="qk", head=0)
    at, density = law_of_products(chosen, 32)
    assert (at[0], at[-1]) == (pytest.approx(lower), pytest.approx(upper))
    assert np.trapezoid(density, at) == pytest.approx(1.0, abs=2e-3)
