"""Estimates of sigma for matrices whose sigma is known."""

from pathlib import Path

import numpy as np
import pytest

from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrix
from scanner.rmt.analysis import SigmaError, analyze
from scanner.rmt.sigma import fit_bulk, sigma_init, sigma_median, sigma_std
from tests.rmt.matrices import bbp_threshold, spiked


def test_std_is_the_standard_deviation_of_the_entries() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((40, 70)) * 0.3 + 0.1
    s = np.linalg.svd(w, compute_uv=False)
    assert sigma_std(float(w.sum()), s, 40, 70) == pytest.approx(w.std(), rel=1e-12)


def test_init_depends_on_the_rows_alone() -> None:
    assert sigma_init(768) == pytest.approx(1 / np.sqrt(768))


@pytest.mark.parametrize("shape", [(500, 500), (1024, 256), (256, 1024)])
def test_median_and_bulk_find_the_sigma_of_pure_noise(shape: tuple[int, int]) -> None:
    s = np.linalg.svd(np.random.default_rng(1).standard_normal(shape) * 0.02, compute_uv=False)
    assert sigma_median(s, *shape) == pytest.approx(0.02, rel=5e-3)
    assert fit_bulk(s, *shape).sigma == pytest.approx(0.02, rel=5e-3)


@pytest.mark.parametrize(
    ("shape", "spikes", "median_error"), [((500, 500), 20, 0.02), ((500, 500), 60, 0.065), ((1536, 384), 60, 0.05)]
)
def test_bulk_is_right_where_spikes_pull_the_median_up(
    shape: tuple[int, int], spikes: int, median_error: float
) -> None:
    rng = np.random.default_rng(spikes)
    thetas = bbp_threshold(*shape) * np.linspace(3.0, 12.0, spikes)
    s = np.linalg.svd(spiked(*shape, thetas, rng), compute_uv=False)
    assert fit_bulk(s, *shape).sigma == pytest.approx(1.0, abs=0.01)
    assert sigma_median(s, *shape) - 1.0 == pytest.approx(median_error, abs=0.02)


@pytest.mark.parametrize("shape", [(500, 500), (1536, 384), (384, 1536)])
def test_every_spike_from_one_and_a_half_thresholds_on_is_found(shape: tuple[int, int]) -> None:
    thetas = bbp_threshold(*shape) * np.linspace(1.5, 4.0, 20)
    found = analyze(spiked(*shape, thetas, np.random.default_rng(7)), sigma="bulk")
    # The bulk's own largest value may lie just outside its edge (Tracy-Widom), so one or two more are right, none fewer.
    assert 20 <= found.outliers_right <= 22
    assert found.outliers_left <= 1


@pytest.mark.parametrize("s", [np.zeros(10), np.array([3.0] + [0.0] * 9), np.ones(10), np.array([2.0])])
def test_a_spectrum_without_a_bulk_ends_in_some_fit(s: np.ndarray) -> None:
    fit = fit_bulk(s, len(s), len(s) + 5)
    assert np.isfinite([fit.sigma, fit.lower, fit.upper]).all()


@pytest.mark.parametrize("decades", [6, 8])
@pytest.mark.parametrize("shape", [(384, 384), (300, 400)])
def test_a_bulk_fit_that_runs_away_has_failed(decades: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(decades)
    lo = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((size, lo)))[0] for size in shape)
    w = u * np.geomspace(1.0, 10.0**-decades, lo) @ v.T  # no bulk: every half of the values has outliers
    with pytest.raises(SigmaError, match="the fit to the bulk failed: it kept less than a quarter") as caught:
        analyze(w, sigma="bulk")
    assert "'median'" in str(caught.value)
    found = analyze(w)
    assert np.isfinite(found.u_p).sum() > 0, "the other estimates are not affected"
    assert found.bulk_failed is True
    assert (found.bulk_lower, found.bulk_upper) == (None, None)


def test_the_bulk_fit_of_a_trained_matrix_that_runs_away_has_failed(minilm: Path) -> None:
    opened = open_checkpoint(str(minilm), identify=False)
    (key,) = list_matrices(opened, Selection(only=("key",), layers=(1,))).matrices
    with pytest.raises(SigmaError):
        analyze(read_matrix(opened.source, key), sigma="bulk")


@pytest.mark.parametrize("shape", [(40, 40), (384, 384), (768, 256)])
def test_the_bulk_fit_of_noise_has_not_failed(shape: tuple[int, int]) -> None:
    w = np.random.default_rng(5).standard_normal(shape)
    fit = fit_bulk(np.linalg.svd(w, compute_uv=False), *shape)
    assert not fit.failed
    found, by_bulk = analyze(w), analyze(w, sigma="bulk")
    assert found.bulk_failed is False
    assert (found.bulk_lower, found.bulk_upper) == (by_bulk.mp_lower, by_bulk.mp_upper)
    assert found.bulk_upper == pytest.approx(fit.upper, rel=1e-9)
