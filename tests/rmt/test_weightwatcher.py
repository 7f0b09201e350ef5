"""The metrics of WeightWatcher: equal to those that `benchmarks/weightwatcher_oracle.py` has recorded."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import entropy

from scanner.checkpoint import list_matrices, open_checkpoint, read_matrix
from scanner.rmt import weightwatcher
from scanner.rmt.analysis import analyze
from scanner.rmt.ensembles import control_of
from scanner.rmt.metric_set import FAILURE, chosen, metric_named
from scanner.rmt.spectrum import MetricError

HERE = Path(__file__).parent
FROZEN: dict[str, Any] = json.loads((HERE / "weightwatcher_oracle.json").read_text("utf-8"))
NAMES = (*chosen(["weightwatcher"]), "ww_rand_distance")
CLOSE = 1e-9
"""Largest relative difference."""


@cache
def oracle() -> ModuleType:
    path = HERE.parent.parent / "benchmarks" / "weightwatcher_oracle.py"
    spec = importlib.util.spec_from_file_location("weightwatcher_oracle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(found: dict[str, Any], frozen: dict[str, Any]) -> None:
    """WeightWatcher reports -1 for a fit that failed, and what follows from it; here these are missing."""
    failed = frozen["alpha"] == -1
    for name, expected in frozen.items():
        ours = found[f"ww_{name}"]
        if failed and f"ww_{name}" in {column.name for column in metric_named("ww_alpha").columns}:
            assert ours is None
            assert "ww_alpha: fewer than two eigenvalues exceed 1e-05" in found[FAILURE]
        elif isinstance(expected, int):
            assert ours == expected, name
        else:
            assert ours == pytest.approx(expected, rel=CLOSE, abs=1e-12), name


def test_the_record_is_of_the_right_versions() -> None:
    assert FROZEN["versions"]["weightwatcher"] == "0.7.7"
    assert FROZEN["versions"]["powerlaw"] == "1.5"
    assert {*FROZEN["seeded"]} == {*oracle().matrices()}
    assert {*FROZEN["real"]} == {*oracle().REAL}
    columns = {column.name for name in NAMES for column in metric_named(name).columns}
    for recorded in (*FROZEN["seeded"].values(), *FROZEN["real"].values()):
        assert {f"ww_{name}" for name in recorded} == columns


@pytest.mark.parametrize("name", FROZEN["seeded"])
def test_seeded_matrices_have_the_metrics_of_weightwatcher(name: str) -> None:
    found = analyze(oracle().matrices()[name], scale="none", metrics=NAMES)
    compare(dict(found.metrics), FROZEN["seeded"][name])


@pytest.mark.parametrize("name", FROZEN["real"])
def test_trained_matrices_have_the_metrics_of_weightwatcher(name: str, minilm: Path) -> None:
    opened = open_checkpoint(str(minilm), identify=False)
    [ref] = [ref for ref in list_matrices(opened).matrices if ref.tensor.endswith(name)]
    found = analyze(read_matrix(opened.source, ref), scale="none", metrics=NAMES)
    compare(dict(found.metrics), FROZEN["real"][name])


def test_the_random_order_is_that_of_the_control() -> None:
    w = oracle().matrices()["few 12 x 50"]
    np.testing.assert_array_equal(oracle().permuted(w), control_of("permuted", w, oracle().SEED))


def test_the_density_is_the_sum_of_the_kernels() -> None:
    values = np.sort(np.random.default_rng(0).exponential(size=70))
    at = np.linspace(0.0, values[-1] + 0.5, 41)
    kernels = np.maximum(0.0, 1.0 - np.abs(at[:, None] - values) / 0.1) / 0.1
    np.testing.assert_allclose(weightwatcher.density(values, at), kernels.mean(axis=1), atol=1e-12)


def test_a_fit_of_all_tails_is_that_of_each_tail_by_itself() -> None:
    x = np.sort(np.random.default_rng(1).pareto(1.5, 700) + 1.0)
    fits = []
    for i in range(len(x) - 1):
        tail = x[i:]
        alpha = 1.0 + len(tail) / np.sum(np.log(tail / tail[0]))
        steps = np.arange(len(tail)) / len(tail)
        fits.append((np.max(np.abs(1.0 - (tail / tail[0]) ** (1.0 - alpha) - steps)), alpha, x[i], len(tail)))
    distance, alpha, x_min, count = min(fits)
    found = weightwatcher.fit_tail(x)
    np.testing.assert_allclose(found, (alpha, x_min, distance, (alpha - 1.0) / np.sqrt(count)), rtol=1e-11)


@pytest.mark.parametrize("values", [np.empty(0), np.ones(1), np.full(40, 1e-6), np.ones(30), np.ones(9)])
def test_a_power_law_that_cannot_be_fitted_is_an_error(values: NDArray[np.float64]) -> None:
    with pytest.raises(MetricError):
        weightwatcher.fit_tail(values)


def test_the_distance_is_that_of_lists_that_are_divided_by_their_sums_after_their_mean_is_formed() -> None:
    p, q = np.array([1.0, 2.0, 0.0, 3.0]), np.array([5.0, 1.0, 1.0, 4.0])
    expected = np.sqrt((entropy(p, (p + q) / 2) + entropy(q, (p + q) / 2)) / 2)
    assert weightwatcher.jensen_shannon(p, q) == pytest.approx(expected, rel=1e-12)


def test_equal_shares_have_no_distance() -> None:
    p = np.random.default_rng(2).random(30)
    assert weightwatcher.jensen_shannon(p, p) == 0.0
    assert weightwatcher.jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(
        np.sqrt(np.log(2.0))
    )
