"""Metrics of a spectrum: closed forms, random matrices, planted truth, and no dependence on the scale."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from scanner.rmt import marchenko_pastur
from scanner.rmt import spectral_metrics as metrics
from scanner.rmt.analysis import Analysis, analyze
from scanner.rmt.decomposition import LowRank, Product
from scanner.rmt.metric_set import (
    FAILURE,
    MATRIX_COLUMNS,
    SPECTRAL_METRICS,
    VECTOR_COLUMNS,
    chosen,
    groups,
    metric_named,
)
from scanner.rmt.spectrum import MetricError, Spectrum
from scanner.rmt.tracy_widom import quantile

Matrix = NDArray[np.float64]


def of(array: Any, *names: str) -> dict[str, Any]:
    return dict(analyze(array, scale="none", metrics=names or ("all",)).metrics)


def spectrum_of(s: Matrix, rows: int, cols: int, sigma: float = 1.0) -> Spectrum:
    lower, upper = marchenko_pastur.singular_value_edges(sigma, rows, cols)
    return Spectrum(
        singular_values=s,
        unit=1.0,
        rows=rows,
        cols=cols,
        rank=len(s),
        triplets=len(s),
        sigma=sigma,
        lower=lower,
        upper=upper,
        independent=True,
        entries=lambda: np.empty((rows, cols)),
    )


def spiked(rows: int, cols: int, strengths: tuple[float, ...], seed: int = 0) -> Matrix:
    """Noise of sigma 1 with spikes, in units of the threshold."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, len(strengths))))[0] for size in (rows, cols))
    noise: Matrix = rng.standard_normal((rows, cols))
    return noise + (u * np.array(strengths) * (rows * cols) ** 0.25) @ v.T


# ---- the registry


def test_every_metric_returns_its_columns_and_no_nan() -> None:
    found = of(spiked(120, 80, (4.0, 3.0, 2.0)))
    for metric in SPECTRAL_METRICS:
        module, name = metric.function.split(".")
        assert getattr(importlib.import_module(f"scanner.rmt.{module}"), name).__doc__
        for column in metric.columns:
            value = found[column.name]
            if column.name == "strength":
                assert np.isnan(value).sum() == 80 - 3
            elif column.type == "text":
                assert value is None or isinstance(value, str)
            else:
                assert isinstance(value, int if column.type == "int32" else float), column.name
                assert np.isfinite(value), column.name
    assert found[FAILURE] is None
    assert {*found} == {column.name for column in (*MATRIX_COLUMNS, *VECTOR_COLUMNS)}


def test_names_of_columns_and_groups_stand_for_metrics() -> None:
    assert chosen(["ww_D"]) == ("ww_alpha",)
    assert chosen(["tw_p", "tw", "tw_outliers"]) == ("tw",)
    assert chosen([]) == chosen(["none"]) == ()
    assert {*chosen(["rmt", "weightwatcher"])} == {*chosen(["default"])}
    extra = {*chosen(["all"])} - {*chosen(["default"])}
    assert extra == {"alpha_farms", "ww_rand_distance"}, "what takes decompositions of its own is off by default"
    assert all(name in groups()["all"] for name in groups()["default"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ww_alhpa"], "'ww_alhpa' .do you mean 'ww_alpha'"),
        (["none", "alpha"], "`none` and others"),
        (["?"], "default"),
    ],
)
def test_unknown_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze(np.eye(3), metrics=names)


def test_a_text_is_no_list_of_names() -> None:
    with pytest.raises(ValueError, match=r"write \['alpha'\]"):
        analyze(np.eye(3), metrics="alpha")


def test_metrics_are_only_what_was_asked_for() -> None:
    found = analyze(np.eye(3), metrics=["gd_rank"])
    assert {*found.metrics} == {"gd_rank", FAILURE}
    assert "gd_rank" in found.matrix_columns()
    assert "strength" not in found.vector_columns()
    assert dict(analyze(np.eye(3), metrics=["none"]).metrics) == {}


@pytest.mark.parametrize("power", [-180, -5, 3, 150])
def test_ours_do_not_depend_on_the_scale(power: int) -> None:
    w = spiked(90, 60, (3.0, 2.0))
    names = (*chosen(["rmt"]), "alpha_farms", "ww_rand_distance")
    plain, scaled = of(w, *names), of(w * 10.0**power, *names)
    for name, value in plain.items():
        if name in {"alpha_xmin", "bema_upper", "strength"}:
            np.testing.assert_allclose(scaled[name] / 10.0**power, value, rtol=1e-9, err_msg=name)
        elif isinstance(value, float):
            assert scaled[name] == pytest.approx(value, rel=1e-9), name
        else:
            assert scaled[name] == value, name


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((20, 30)),
        np.ones((20, 30)),
        np.ones((1, 40)),
        np.zeros((1, 1)),
        np.ones((1, 1)),
        np.random.default_rng(0).standard_normal((1, 50)),
        np.random.default_rng(0).standard_normal((50, 1)),
        np.random.default_rng(0).standard_normal((2, 3)),
        np.random.default_rng(0).standard_normal((9, 9)),
        np.eye(40),
        np.full((30, 30), 1e300) * np.eye(30),
        np.full((30, 30), 1e-300) * np.eye(30),
        np.random.default_rng(0).standard_normal((40, 60)) * 1e300 / 2400,
        np.diag(np.logspace(0, -300, 40)),
    ],
    ids=lambda array: f"{array.shape} {array.flat[0]:.0e}",
)
def test_a_metric_that_means_nothing_is_missing_for_a_stated_reason(array: Matrix) -> None:
    found = of(array)
    for metric in SPECTRAL_METRICS:
        for column in metric.columns:
            value = found[column.name]
            if column.type == "text" or column.name == "strength":
                continue
            if value is None:
                assert metric.name in found[FAILURE] or column.name in found[FAILURE], column.name
            else:
                assert np.isfinite(value), column.name
    assert (found["alpha"] is None) <= (found["alpha_failure"] is not None)


def test_a_value_out_of_range_is_missing_and_the_others_of_its_metric_are_not() -> None:
    found = of(spiked(60, 40, (4.0, 3.0)) * 1e120, "ww_alpha")
    assert found["ww_log_alpha_norm"] is None
    assert found["ww_alpha"] > 1.0
    assert found[FAILURE] == "ww_log_alpha_norm: out of the range of float64"


def test_a_low_rank_matrix_has_exponents_and_no_bulk() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((200, 32)), rng.standard_normal((32, 300))
    dense, thin = of(left @ right), of(LowRank(left=_tensor(left), right=_tensor(right)))
    assert dense["alpha"] == pytest.approx(thin["alpha"], rel=1e-8)
    assert dense["alpha_hill"] == pytest.approx(thin["alpha_hill"], rel=1e-8)
    assert thin["alpha_farms"] == pytest.approx(dense["alpha_farms"], rel=1e-8)
    for found in (dense, thin):
        assert found["tw_p"] is None
        assert "bema, gd_rank, strength, tw: half of the singular values or more are numerically zero" in found[FAILURE]


def test_a_product_of_weights_has_no_marchenko_pastur_law() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((64, 16)), rng.standard_normal((16, 64))
    found = of(Product(left=_tensor(left), right=_tensor(right)))
    assert found["alpha"] is not None
    assert found["ww_alpha"] is not None
    assert "bema, gd_rank, strength, tw: a product of two weights" in found[FAILURE]


def _tensor(array: Matrix) -> Any:
    import torch

    return torch.from_numpy(array)


# ---- exponents


def test_the_power_law_is_the_one_of_the_sample() -> None:
    s = np.sort(np.sqrt(scipy.stats.pareto(b=1.7).rvs(3000, random_state=1)))[::-1]
    found = metrics.power_law(spectrum_of(s, 3000, 3000, sigma=1e-3))
    assert abs(found["alpha"] - 2.7) < 4.0 * found["alpha_error"]
    assert found["alpha_p"] > 0.1
    assert found["alpha_failure"] is None


def test_the_fit_is_the_best_of_all_tails() -> None:
    s = np.sort(np.random.default_rng(3).lognormal(0.0, 1.0, 400))
    best = []
    for i in range(len(s) - metrics.SMALLEST_TAIL):
        tail = np.log(s[i + 1 :] / s[i]) * 2.0
        distance = scipy.stats.kstest(tail, "expon", args=(0.0, tail.mean())).statistic
        best.append((distance, 1.0 + 1.0 / tail.mean(), s[i], len(tail)))
    distance, alpha, x_min, count = min(best)
    found = metrics.power_law(spectrum_of(s[::-1], 400, 400, sigma=1e-3))
    assert found["alpha_ks"] == pytest.approx(distance, rel=1e-10)
    assert found["alpha"] == pytest.approx(alpha, rel=1e-10)
    assert (found["alpha_xmin"], found["alpha_tail"]) == (x_min, count)


def test_a_tail_that_is_no_power_law_is_rejected() -> None:
    assert metrics.exponential_p(0.2, 500) < 1e-6
    fit = of(spiked(384, 384, (6.0, 4.0, 3.0, 2.0, 1.5)))
    assert "not a power law" in fit["alpha_failure"]
    assert fit["alpha_p"] <= metrics.REJECTED


def test_a_random_matrix_has_no_tail() -> None:
    failures = [of(spiked(100, 150, (0.0,), seed), "alpha")["alpha_failure"] for seed in range(20)]
    assert sum(failure is not None and "random matrices" in failure for failure in failures) >= 18


@pytest.mark.parametrize("count", [12, 60, 400])
def test_the_p_value_of_an_exponential_sample_is_uniform(count: int) -> None:
    rng = np.random.default_rng(count)
    p = []
    for _ in range(2000):
        x = np.sort(rng.exponential(size=count))
        law, steps = -np.expm1(-x / x.mean()), np.arange(count + 1) / count
        p.append(metrics.exponential_p(max((steps[1:] - law).max(), (law - steps[:-1]).max()), count))
    for level in (0.02, 0.1, 0.3, 0.5, 0.8):
        # In small samples p is a little too large, never too small.
        share, error = np.mean(np.array(p) <= level), np.sqrt(level * (1 - level) / 2000)
        assert (0.85 if count < 50 else 1.0) * level - 4.0 * error <= share <= level + 4.0 * error


def test_hill_is_the_closed_form_and_finds_the_exponent() -> None:
    assert metrics.hill(np.array([1.0, 2.0, 4.0, 8.0])) == pytest.approx(1.0 + 2.0 / np.log(2.0))
    pareto = np.sort(scipy.stats.pareto(b=1.5).rvs(20000, random_state=0))
    assert metrics.hill(pareto) == pytest.approx(2.5, abs=0.06)
    for wrong in (np.empty(0), np.ones(1), np.ones(30)):
        with pytest.raises(MetricError):
            metrics.hill(wrong)


def test_farms_pools_the_windows() -> None:
    w = np.random.default_rng(0).standard_normal((145, 420))
    (height, width), places = metrics.windows(*w.shape)
    assert (height, width) == (100, 200)
    assert [row for row, col in places if col == 0] == [*range(0, 46, 5)]
    assert len(places) == 100
    pooled = [np.linalg.svd(w[r : r + 100, c : c + 200], compute_uv=False) ** 2 for r, c in places]
    assert of(w, "alpha_farms")["alpha_farms"] == pytest.approx(metrics.hill(np.sort(np.concatenate(pooled))))


def test_farms_does_not_depend_on_the_aspect_ratio_of_noise() -> None:
    rng = np.random.default_rng(0)
    found = [of(rng.standard_normal(shape), "alpha_farms", "alpha_hill") for shape in ((300, 300), (150, 900))]
    assert found[0]["alpha_farms"] == pytest.approx(found[1]["alpha_farms"], rel=0.02)
    assert found[1]["alpha_hill"] / found[0]["alpha_hill"] > 1.5, "and alpha_hill does"


@pytest.mark.parametrize(
    ("shape", "window"), [((40, 60), (30, 60)), ((500, 20), (10, 20)), ((1, 9), (1, 2)), ((5, 1), (0, 0))]
)
def test_windows_of_small_matrices_keep_their_ratio(shape: tuple[int, int], window: tuple[int, int]) -> None:
    found, places = metrics.windows(*shape)
    assert found == window
    assert all(row + window[0] <= shape[0] and col + window[1] <= shape[1] for row, col in places)


# ---- the largest values


@pytest.mark.parametrize("shape", [(64, 64), (40, 160)])
def test_tracy_widom_p_is_calibrated_and_bema_keeps_its_level(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    draws = [np.linalg.svd(rng.standard_normal(shape), compute_uv=False) for _ in range(800)]
    found = [metrics.tracy_widom_tests(spectrum_of(s, *shape)) for s in draws]
    p = np.array([one["tw_p"] for one in found])
    assert 0.02 <= np.mean(p <= 0.05) <= 0.09
    assert 0.43 <= np.mean(p <= 0.5) <= 0.58
    assert np.mean([one["tw_outliers"] > 0 for one in found]) <= 0.03
    assert np.mean([metrics.bulk_matching(spectrum_of(s, *shape))["bema_outliers"] > 0 for s in draws]) <= 0.1


@pytest.mark.parametrize("shape", [(200, 200), (120, 480)])
def test_planted_spikes_are_counted(shape: tuple[int, int]) -> None:
    found = of(spiked(*shape, (5.0, 4.0, 3.0, 2.0)))
    assert found["tw_p"] < 1e-12
    assert found["tw_outliers"] == 4
    assert found["bema_outliers"] == 4


def test_the_edge_of_bema_is_its_formula() -> None:
    rows, cols, sigma = 150, 400, 0.3
    g = rows / cols
    k = np.arange(1, rows + 1)
    law = [_quantile(1.0 - one / rows, g) for one in k[k < rows]]
    s = np.sqrt(np.array([*law, law[-1]]) * cols) * sigma  # the spectrum that is matched exactly
    found = metrics.bulk_matching(spectrum_of(s, rows, cols, sigma))
    t = quantile(0.9)
    expected = (1 + np.sqrt(g)) ** 2 + t * cols ** (-2 / 3) * g ** (-1 / 6) * (1 + np.sqrt(g)) ** (4 / 3)
    assert found["bema_upper"] == pytest.approx(sigma * np.sqrt(cols * expected), rel=1e-6)


def _quantile(p: float, gamma: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(lambda x: float(marchenko_pastur.cdf(x, gamma)) - p, *marchenko_pastur.edges(gamma)))


@pytest.mark.parametrize("shape", [(400, 400), (200, 800)])
def test_strengths_are_those_that_were_planted(shape: tuple[int, int]) -> None:
    planted = (6.0, 4.0, 2.5)
    found = of(spiked(*shape, planted), "strength")["strength"]
    np.testing.assert_allclose(found[:3] / np.prod(shape) ** 0.25, planted, rtol=0.03)
    assert np.isnan(found[4:]).all()


def test_strength_inverts_the_singular_value_of_a_spike() -> None:
    for gamma in (1.0, 0.5, 0.1):
        theta = np.array([5.0, 2.0, 1.01 * gamma**0.25])
        s = np.sqrt((1.0 + theta**2) * (gamma + theta**2) / theta**2)
        np.testing.assert_allclose(metrics.spike_strengths(s, gamma), theta, rtol=1e-6)
        inside = np.array([1.0 + np.sqrt(gamma), 1.0, 0.0])
        assert np.isnan(metrics.spike_strengths(inside, gamma)).all()


# ---- the bulk


def test_the_spacing_ratio_tells_random_matrices_from_independent_values() -> None:
    rng = np.random.default_rng(0)
    random = [of(rng.standard_normal((200, 300)), "spacing_ratio")["spacing_ratio"] for _ in range(40)]
    independent = [metrics.mean_ratio(np.sort(rng.random(200))) for _ in range(400)]
    assert np.mean(random) == pytest.approx(0.5307, abs=0.012)
    assert np.mean(independent) == pytest.approx(2 * np.log(2) - 1, abs=0.004)
    assert metrics.mean_ratio(np.arange(9.0)) == 1.0
    assert metrics.mean_ratio(np.array([0.0, 1.0, 3.0])) == 0.5


@pytest.mark.parametrize(("gamma", "omega"), [(1.0, 2.8584), (0.5, 2.1712), (0.25, 1.8369)])
def test_the_optimal_threshold_is_that_of_gavish_and_donoho(gamma: float, omega: float) -> None:
    assert metrics.optimal_threshold(gamma) == pytest.approx(omega, abs=3e-4)


def test_the_optimal_rank_counts_values_above_the_threshold() -> None:
    w = spiked(300, 300, (5.0, 4.0, 3.0))
    s = np.linalg.svd(w, compute_uv=False)
    assert of(w, "gd_rank")["gd_rank"] == int((s > 2.8582 * np.median(s)).sum()) == 3


def test_rows_have_the_columns_and_nan_becomes_null() -> None:
    from scanner.store.tables import rows

    found: Analysis = analyze(spiked(60, 40, (4.0,)), metrics=["all"])
    wanted = {column.name for name in chosen(["all"]) for column in metric_named(name).matrix}
    table = rows(
        "matrices",
        {"scan_id": "a", "model": "m", "tensor": "t", "role": "other", "rows": 60, "cols": 40} | found.matrix_columns(),
        1,
    )
    assert all(table[name].null_count == 0 for name in wanted - {"alpha_failure"})
    place = {"scan_id": "a", "model": "m", "tensor": "t", "role": "other", "rows": 60, "cols": 40}
    vectors = rows("vectors", place | found.vector_columns(), 40)
    assert vectors["strength"].null_count == 40 - found.outliers_right
    none = rows("vectors", place | analyze(np.ones((60, 40)), metrics=["all"]).vector_columns(), 40)
    assert none["strength"].null_count == 40
