"""q-values and the omnibus test: against scipy, their definitions, and simulations of both nulls that show the error rates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from scanner.rmt.analysis import Analysis, analyze
from scanner.rmt.entries import entry_statistics
from scanner.rmt.inference import omnibus, q_values
from scanner.rmt.ks_null import SMALLEST_P, KsNull, effects, shipped_table, simulate
from tests.rmt.matrices import bbp_threshold, spiked


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
def test_q_values_are_those_of_scipy(p: list[float]) -> None:
    np.testing.assert_allclose(q_values(np.array(p)), stats.false_discovery_control(p), rtol=1e-12)


def test_what_is_not_tested_is_not_in_the_family() -> None:
    p = np.array([0.01, np.nan, 0.02, np.nan, 0.9])
    np.testing.assert_allclose(q_values(p), [0.03, np.nan, 0.03, np.nan, 0.9])
    assert omnibus(p) == omnibus(p[~np.isnan(p)])
    assert np.isnan(q_values(np.full(3, np.nan))).all()
    assert np.isnan(omnibus(np.full(3, np.nan)))


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30))
def test_the_omnibus_p_is_fishers(p: list[float]) -> None:
    assert omnibus(np.array(p)) == pytest.approx(stats.combine_pvalues(p, "fisher").pvalue, rel=1e-9, abs=1e-300)


def test_an_omnibus_p_of_extreme_values_is_positive() -> None:
    assert 0.0 < omnibus(np.full(4000, 1e-37)) <= 1e-200


# ---- p-values beyond the table


def _tail_by_importance(length: int, d: float, draws: int, seed: int) -> tuple[float, float]:
    """P(D >= d) of a normalized Gaussian vector, and its standard error, by importance sampling.

    D is large if too many or too few entries are below some place, so before it is normalized a vector is drawn with another
    probability of that: Phi(x) + h, for one of several places x and shifts h up to a bit more than d. Every draw is weighted by
    the ratio of the probability densities of its direction under independent Gaussian entries and under the mixture of all x
    and h, which are integrals over its length (chi-distributed for Gaussian entries).
    """
    rng = np.random.default_rng(seed)
    places = stats.norm.cdf(np.linspace(-1.2, 1.2, 9))
    place, shift = (each.ravel() for each in np.meshgrid(places, d * np.array([-1.1, -0.9, -0.6, 0.6, 0.9, 1.1])))
    allowed = (place + shift > 0.01) & (place + shift < 0.99)
    place, shift = place[allowed], shift[allowed]
    below, above = np.log1p(shift / place), np.log1p(-shift / (1.0 - place))
    radii = np.linspace(-4.5, 4.5, 19) / np.sqrt(2) + np.sqrt(length)
    log_chi = stats.chi.logpdf(radii, length)
    log_chi -= special.logsumexp(log_chi)
    weighted = []
    for _ in range(draws // 1000):
        which = rng.integers(len(place), size=1000)
        at, there = place[which, None], (place + shift)[which, None]
        uniform = rng.random((1000, length))
        uniform = np.where(uniform < there, uniform / there * at, 1.0 - (1.0 - uniform) / (1.0 - there) * (1.0 - at))
        vectors = special.ndtri(uniform)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found = entry_statistics(torch.from_numpy(vectors)).ks.numpy() >= d
        ratios = np.zeros((1000, len(place)))
        for log_weight, radius in zip(log_chi, radii, strict=True):
            for value in places:
                same = place == value
                count = (vectors < special.ndtri(value) / radius).sum(axis=1)[:, None]
                ratios[:, same] += np.exp(log_weight + count * below[same] + (length - count) * above[same])
        weighted.append(found / ratios.mean(axis=1))
    each = np.concatenate(weighted)
    return float(each.mean()), float(each.std() / np.sqrt(len(each)))


@pytest.mark.parametrize("length", [64, 256, 600])
@pytest.mark.parametrize("x", [2.4, 3.0, 3.6])
def test_the_continued_tail_is_that_of_a_simulation(length: int, x: float) -> None:
    d = x / (np.sqrt(length) + 0.12 + 0.11 / np.sqrt(length))
    expected, error = _tail_by_importance(length, d, 20_000, seed=length)
    assert error < 0.3 * expected
    p = float(KsNull().p_values(d, length))
    assert p < 3e-5
    noise = 3 * error / expected
    # Not too small anywhere; and right to a third, unless D is so large that it is no longer a small deviation of the signs.
    assert np.log(p / expected) > -0.35 - noise
    if length * d**4 < 0.4:
        assert np.log(p / expected) < 0.5 + noise


@pytest.mark.parametrize("length", [24, 128, 768, 4096, 20_000])
def test_the_tail_continues_the_table(length: int) -> None:
    d = np.linspace(0.0, min(1.0, 12.0 / np.sqrt(length)), 2000)
    with_tail, table = KsNull().p_values(d, length), KsNull(continued=False).p_values(d, length)
    common = table >= 1e-4
    np.testing.assert_array_equal(with_tail[common], table[common])
    dense = (table < 1e-4) & (table > 3e-5)  # from thirty draws
    assert np.abs(np.log(with_tail[dense] / table[dense])).max(initial=0.0) < 0.5
    assert (np.diff(with_tail) <= 0).all()
    assert with_tail.min() < 1e-6
    assert table.min() >= 1 / (1 + shipped_table().draws) * (1 - 1e-9)


def test_p_is_positive_in_single_precision() -> None:
    p = KsNull().p_values([0.9, 1.0], 100_000)
    np.testing.assert_allclose(p, SMALLEST_P)
    assert (p.astype(np.float32) > 0).all()


@pytest.mark.parametrize("length", [8, 100, 768, 6000])
def test_the_effect_of_a_random_vector_is_zero_on_average(length: int) -> None:
    draws = 5000
    found = effects(simulate(length, draws, seed=4), length)
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(draws)
    assert found.std() == pytest.approx(0.25, abs=0.05)
    assert np.isnan(effects([0.5], 1)).all()


def test_effects_order_what_p_values_do_not_tell_apart() -> None:
    d = np.array([0.5, 0.7])
    assert len(set(KsNull().p_values(d, 10_000))) == 1
    assert np.diff(effects(d, 10_000))[0] == pytest.approx(0.2 * 100, rel=0.01)


# ---- error rates


def _tests(found: Analysis) -> dict[str, tuple[float, bool]]:
    """By side and null: the omnibus p, and whether any q is at most 0.05."""
    told = {}
    for name in ("u_p", "v_p", "u_p_scale", "v_p_scale"):
        q = getattr(found, name.replace("_p", "_q"))
        told[name] = getattr(found, f"{name}_omnibus"), bool((q <= 0.05).any())
    return told


def _rates(shape: tuple[int, int], draws: int, factor: float) -> dict[str, tuple[float, float]]:
    """Shares of random matrices with an omnibus p of at most 0.05, and with a q of at most 0.05."""
    counts: dict[str, np.ndarray] = {}
    for draw in range(draws):
        rng = np.random.default_rng([draw, *shape])
        a, b = (factor ** rng.uniform(-0.5, 0.5, size) for size in shape)
        told = _tests(analyze(np.sqrt(np.outer(a, b)) * rng.standard_normal(shape)))
        for name, (p, rejected) in told.items():
            counts[name] = counts.get(name, np.zeros(2)) + np.array([p <= 0.05, rejected])
    return {name: (found[0] / draws, found[1] / draws) for name, found in counts.items()}


def _most(draws: int, rate: float = 0.05) -> float:
    """A share that a test of this rate exceeds in one of ten thousand simulations."""
    return float(stats.binom.isf(1e-4, draws, rate) / draws)


@pytest.mark.parametrize("shape", [(96, 96), (48, 192)])
def test_random_matrices_are_rejected_as_often_as_the_level_says(shape: tuple[int, int]) -> None:
    draws = 120
    for name, (by_omnibus, by_q) in _rates(shape, draws, factor=1.0).items():
        assert by_omnibus <= _most(draws), name
        # All are random, so each discovery is false: their rate is that of any discovery.
        assert by_q <= _most(draws), name


def test_unequal_rows_and_columns_are_no_direction() -> None:
    draws = 60
    rates = _rates((96, 160), draws, factor=30.0)
    assert min(rates["u_p"][0], rates["v_p"][0]) > 0.9, "an i.i.d. null rejects them"
    for name in ("u_p_scale", "v_p_scale"):
        assert max(rates[name]) <= _most(draws), name


def test_the_false_discovery_rate_is_at_most_the_level() -> None:
    """Vectors with a few large entries, which fail, among random ones."""
    rng = np.random.default_rng(8)
    shares = []
    for _ in range(60):
        vectors = rng.standard_normal((200, 300))
        vectors[:40, :6] *= 8.0
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found = entry_statistics(torch.from_numpy(vectors)).ks.numpy().astype(np.float64)
        chosen = q_values(KsNull().p_values(found, 300)) <= 0.1
        shares.append(chosen[40:].sum() / max(chosen.sum(), 1))
    assert np.mean(shares) < 0.1 + 4 * np.std(shares) / np.sqrt(len(shares))


def test_a_spike_with_a_peak_is_found_in_its_vector() -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((200, 300))
    direction = np.where(np.arange(200) < 20, 1.0, 0.0) / np.sqrt(20)
    w += 4 * bbp_threshold(200, 300) * np.outer(direction, rng.standard_normal(300) / np.sqrt(300))
    found = analyze(w)
    assert found.u_q is not None
    assert found.u_effect is not None
    assert found.u_q[0] < 1e-6 < 0.05 < found.u_q[1:].min()
    assert found.u_effect[0] == found.u_effect.max() > 2.0
    assert found.u_p_omnibus is not None
    assert found.u_p_omnibus < 0.01


def test_without_a_scale_null_p_values_are_those_of_earlier_versions() -> None:
    w = spiked(64, 256, np.array([200.0]), np.random.default_rng(0))
    w[0] += 40.0
    plain, full = analyze(w, scale="none"), analyze(w)
    assert plain.u_p.min() >= 0.99e-6 > full.u_p.min()
    assert plain.u_q is not None, "the family is tested all the same"
    assert plain.u_q_scale is None
    assert plain.u_p_scale_omnibus is None


def test_triplets_without_vectors_have_no_q() -> None:
    rng = np.random.default_rng(1)
    found = analyze(rng.standard_normal((30, 4)) @ rng.standard_normal((4, 40)))
    for name in ("u_q", "v_q", "u_effect", "v_effect"):
        values = getattr(found, name)
        assert np.isfinite(values[:4]).all()
        assert np.isnan(values[4:]).all()
    one = analyze(np.ones((1, 5)))
    assert one.u_p_omnibus is not None
    assert np.isnan(one.u_p_omnibus)
