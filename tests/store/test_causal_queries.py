"""Queries that compare ablations with their controls, against numpy and scipy, and simulations of their error rates."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student

from scanner.store import Store

from .rows import table
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
        assert (row["low"], row["high"]) == pytest.approx((difference - width, difference + width), rel=1e-3)
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
