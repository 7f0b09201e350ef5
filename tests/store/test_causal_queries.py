"""Queries that compare ablations with their controls, against numpy and scipy, and simulations of their error rates."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from scipy.stats import t as student

from scanner.store import Store

from .rows import Matrix, add_scan, table
from .test_experiment_queries import add_run

WINDOWS = 12


def add_windows(store: Store, sums: NDArray[np.float64], weights: NDArray[np.float64], *, run_id: str = "run") -> None:
    rows: list[dict[str, object]] = [
        {"run_id": run_id, "window": window, "sum": sums[window], "weight": weights[window]}
        for window in range(len(sums))
    ]
    store.write_rows("baselines", run_id, table("baselines", rows), method={})


def point(name: str, sums: NDArray[np.float64], **more: object) -> dict[str, object]:
    shared = {"run_id": "run", "model": "org/model", "revision": "r1", "roles": "query", "layers": "0-1"}
    measured = {"metric": "perplexity", "baseline": 20.0, "value": 21.0, "delta": 1.0, "removed": 10, "energy": 0.1}
    return shared | measured | {"set": name, "window_sums": sums.tolist()} | more


def write(store: Store, rows: list[dict[str, object]]) -> None:
    store.write_rows("ablations", "run-all", table("ablations", rows), method={})


def test_a_set_is_compared_with_the_draws_of_each_control_window_by_window(store: Store) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(100, 200, WINDOWS).astype(float)
    base = weights * rng.uniform(3.0, 5.0, WINDOWS)
    own = base + weights * rng.normal(0.5, 0.1, WINDOWS)
    random = base + weights * rng.normal(0.2, 0.1, (4, WINDOWS)) + weights * rng.normal(0.0, 0.1, (4, 1))
    scaled = base + weights * rng.normal(0.49, 0.1, (3, WINDOWS))
    rows = [point("decile:1", own)]
    rows += [point(f"random:{seed}", sums, beside="decile:3") for seed, sums in enumerate(random)]
    rows += [point(f"scale:{seed}", sums, beside="decile:1") for seed, sums in enumerate(scaled)]
    rows += [point("scale:1", own, beside="decile:2"), point("random:1", own, beside="decile:3", removed=11)]
    add_run(store, "run", "ablation")
    add_windows(store, base, weights)
    write(store, rows)
    found = {row["control"]: row for row in store.query("ablation_controls").to_pylist()}
    assert set(found) == {"random", "scale"}
    total = weights.sum()

    def variance(excess: NDArray[np.float64]) -> float:
        mean = excess.sum() / total
        return float(WINDOWS / (WINDOWS - 1) * (((excess - mean * weights) / total) ** 2).sum())

    for control, draws in (("random", random), ("scale", scaled)):
        row = found[control]
        damages = (draws - base).sum(axis=1) / total
        of_windows = variance(own - draws.mean(axis=0))
        of_draws = damages.var(ddof=1) / len(draws)
        freedom = (of_windows + of_draws) ** 2 / (of_windows**2 / (WINDOWS - 1) + of_draws**2 / (len(draws) - 1))
        width = student.ppf(0.975, freedom) * np.sqrt(of_windows + of_draws)
        difference = (own - base).sum() / total - damages.mean()
        assert row["damage"] == pytest.approx((own - base).sum() / total)
        assert row["control_damage"] == pytest.approx(damages.mean())
        assert row["difference"] == pytest.approx(difference)
        assert row["stderr"] == pytest.approx(np.sqrt(of_windows + of_draws))
        assert (row["low"], row["high"]) == pytest.approx((difference - width, difference + width), abs=2e-3 * width)
        assert (row["draws"], row["exceeded"]) == (len(draws), (damages < row["damage"]).sum())
    half = student.ppf(0.975, WINDOWS - 1) * np.sqrt(variance(own - base))
    assert found["scale"]["damage_high"] - found["scale"]["damage"] == pytest.approx(half, rel=1e-3)
    assert (found["random"]["differs"], found["scale"]["differs"]) == ("more", None)


def test_lost_accuracy_is_damage_and_points_without_windows_are_left_out(store: Store) -> None:
    ones, base = np.ones(6), np.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    add_run(store, "run", "ablation")
    add_windows(store, base, ones)
    lost, kept = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 1.0]), base.copy()
    rows = [point("decile:1", lost, metric="accuracy")]
    rows += [point(f"energy:{seed}", kept, metric="accuracy", beside="decile:1") for seed in (1, 2)]
    rows += [point("decile:2", lost, metric="accuracy", window_sums=None)]
    write(store, rows)
    [row] = store.query("ablation_controls").to_pylist()
    assert (row["set"], row["damage"], row["control_damage"]) == ("decile:1", pytest.approx(2 / 6), 0.0)
    assert [row["set"] for row in store.query("ablation_curve").to_pylist()] == ["decile:1", "decile:2"]


def test_quantiles_of_student_are_right(store: Store) -> None:
    freedom = [2.0, 2.5, 3.0, 4.0, 7.0, 15.0, 100.0, 1e6]
    found = [store.sql("select t_quantile(?::double) as t", [df]).to_pylist()[0]["t"] for df in freedom]
    expected = student.ppf(0.975, freedom)
    np.testing.assert_allclose(found, expected, rtol=0.012)
    np.testing.assert_allclose(found[3:], expected[3:], rtol=1e-3)


def test_intervals_contain_no_difference_in_95_of_100_cases(store: Store) -> None:
    """400 sets that do as much damage as their controls on average, draws and windows varying: 95 % contain 0."""
    rng = np.random.default_rng(1)
    weights, count, draws = np.full(WINDOWS, 100.0), 400, 10
    base = weights * 4.0
    rows = []
    for index in range(count):
        window = rng.normal(0.0, 0.3, WINDOWS)  # a window is easy or hard for all of them

        def drawn(window: NDArray[np.float64] = window) -> NDArray[np.float64]:
            return base + weights * (0.5 + window + rng.normal(0.0, 0.1, WINDOWS))

        rows.append(point("decile:1", drawn(), layers=str(index)))
        spread = rng.normal(0.0, 0.05, (draws, 1))
        spread -= spread.mean()
        rows += [
            point(f"random:{seed}", drawn() + weights * spread[seed], layers=str(index), beside="decile:1")
            for seed in range(draws)
        ]
    add_run(store, "run", "ablation")
    add_windows(store, base, weights)
    write(store, rows)
    found = store.query("ablation_controls").to_pylist()
    assert len(found) == count
    share = np.mean([row["low"] <= 0.0 <= row["high"] for row in found])
    assert 0.92 <= share <= 0.995
    unpaired = np.mean([row["damage_high"] - row["damage_low"] for row in found])
    assert np.mean([row["high"] - row["low"] for row in found]) < 0.6 * unpaired  # pairing is worth it


def residual(values: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    design = np.column_stack([np.ones(len(given)), given])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def add_deciles(
    store: Store,
    layers: int,
    damage: NDArray[np.float64],
    p: NDArray[np.float64],
    p_scale: NDArray[np.float64] | None = None,
) -> None:
    """Blocks of one matrix of ten singular values each; `p` and `damage` are (layers, 10), decile 1 first."""
    matrices = []
    for layer in range(layers):
        by_rank: dict[str, Sequence[object]] = {}
        if p_scale is not None:
            by_rank = {name: list(p_scale[layer, ::-1]) for name in ("u_p_scale", "v_p_scale")}
        values = list(p[layer, ::-1])
        matrix = Matrix(tensor=f"m{layer}", layer=layer, rows=10, cols=10, singular_values=list(range(10, 0, -1)))
        matrices.append(replace(matrix, u_p=values, v_p=values, by_rank=by_rank))
    add_scan(store, "scan", matrices)
    add_run(store, "run", "ablation")
    rows = []
    for layer in range(layers):
        for decile in range(1, 11):
            one = point(f"decile:{decile}", np.zeros(1), layers=str(layer), removed=1)
            rows.append(one | {"delta": damage[layer, decile - 1], "window_sums": None})
    write(store, rows)


def test_partial_correlations_given_size_and_their_permutation_p(store: Store) -> None:
    rng = np.random.default_rng(5)
    layers, size = 6, np.arange(1.0, 11.0)
    p = rng.random((layers, 10))
    p_scale = rng.random((layers, 10))
    damage = 0.3 * size + rng.random((layers, 10)) * 2 - 3 * p
    add_deciles(store, layers, damage, p, p_scale=p_scale)
    found = store.query("ablation_vs_pvalue").to_pylist()
    assert len(found) == layers
    orders = [np.argsort(rng.random(10)) for _ in range(4000)]
    for layer, row in enumerate(found):
        ranks = residual(rankdata(damage[layer]), size)
        for name, values in (
            ("p", p[layer]),
            ("scale", p_scale[layer] - p[layer]),
            ("direction", 0.5 - p_scale[layer]),
        ):
            other = residual(rankdata(values), size)
            expected = np.corrcoef(ranks, other)[0, 1]
            assert row[f"{name}_correlation"] == pytest.approx(spearmanr(damage[layer], values).statistic)
            assert row[f"{name}_given_size"] == pytest.approx(expected)
            drawn = np.array([abs(np.corrcoef(residual(ranks[order], size), other)[0, 1]) for order in orders])
            assert row[f"{name}_given_size_p"] == pytest.approx(np.mean(drawn >= abs(expected) - 1e-9), abs=0.04)


def test_permutation_p_are_right_where_damage_depends_on_size_alone(store: Store) -> None:
    """300 curves: damage and p depend on size, but not on each other, and 5 % are below 0.05."""
    rng = np.random.default_rng(6)
    count, size = 300, np.arange(1.0, 11.0)
    damage = size + rng.normal(0.0, 2.0, (count, 10))
    p = np.clip(0.5 - 0.03 * size + rng.normal(0.0, 0.08, (count, 10)), 0.0, 1.0)
    add_deciles(store, count, damage, p)
    found = store.query("ablation_vs_pvalue").to_pylist()
    # Where p has exactly the order of size, nothing of it is left.
    known = [row["p_given_size_p"] for row in found if row["p_given_size_p"] is not None]
    assert len(known) >= count - 3
    partial = np.mean([one <= 0.05 for one in known])
    assert 0.02 <= partial <= 0.09
    assert np.mean([row["p_correlation_p"] <= 0.05 for row in found]) > 0.4  # size makes both
    assert all(row["scale_correlation"] is None and row["direction_given_size_p"] is None for row in found)


def test_tuned_models_are_compared_with_the_untouched_one_of_the_same_seed(store: Store) -> None:
    rng = np.random.default_rng(7)
    seeds = rng.normal(0.8, 0.05, 5)  # the seed decides more than the removal
    after = seeds[:4] - 0.02 + rng.normal(0.0, 0.004, 4)
    rows: list[dict[str, object]] = []
    for order, decile, values in (("none", None, seeds[1:]), ("tune-first", 1, after)):
        for seed, accuracy in zip(range(1 if order == "none" else 0, 5), values, strict=False):
            shared = {"run_id": "run", "base_model": "b", "dataset": "d", "epochs": 1, "examples": 9}
            rows.append(shared | {"order": order, "decile": decile, "seed": seed, "accuracy": accuracy, "roles": "all"})
    store.write_rows("finetunes", "run-all", table("finetunes", rows), method={})
    untouched, tuned = store.query("finetune_by_decile").to_pylist()
    assert (untouched["pairs"], untouched["paired_delta"], untouched["low"]) == (0, None, None)
    differences = after[1:] - seeds[1:4]
    stderr = differences.std(ddof=1) / 3**0.5
    assert (tuned["seeds"], tuned["pairs"]) == (4, 3)
    assert tuned["paired_delta"] == pytest.approx(differences.mean())
    assert tuned["paired_stderr"] == pytest.approx(stderr)
    assert tuned["high"] - tuned["low"] == pytest.approx(2 * student.ppf(0.975, 2) * stderr, rel=0.012)
    assert tuned["high"] < 0.0
