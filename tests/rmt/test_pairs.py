"""Measures of a pair of matrices, compared with numpy, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from scanner.rmt import pairs


def orthonormal(count: int, length: int, seed: int) -> torch.Tensor:
    """`count` orthonormal rows."""
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).standard_normal((length, count)))[0].T.copy())


def test_change_of_the_weights_is_what_numpy_says() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((30, 20)).astype(np.float32)
    tuned = base + 0.1 * rng.standard_normal((30, 20)).astype(np.float32)
    found = pairs.weight_change(torch.from_numpy(base), torch.from_numpy(tuned))
    a, b = base.astype(np.float64), tuned.astype(np.float64)
    assert found.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-12)
    assert found.cosine == pytest.approx(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)
    assert not found.identical


def test_a_matrix_is_identical_to_itself_and_to_nothing_a_bit_away() -> None:
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert pairs.weight_change(matrix, matrix.clone()) == pairs.Change(
        relative=0.0, cosine=pytest.approx(1.0), identical=True
    )
    moved = matrix.clone()
    moved[0, 0] = torch.nextafter(moved[0, 0], torch.tensor(10.0))
    assert not pairs.weight_change(matrix, moved).identical


def test_zero_matrices_have_a_change_but_no_direction() -> None:
    zero, one = torch.zeros(3, 3), torch.ones(3, 3)
    assert pairs.weight_change(zero, one).relative == float("inf")
    assert pairs.weight_change(zero, zero).relative == 0.0
    assert np.isnan(pairs.weight_change(one, zero).cosine)


@given(shift=st.integers(0, 20), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_overlaps_find_a_permutation_with_signs(shift: int, seed: int) -> None:
    base = orthonormal(21, 40, seed)
    order = np.roll(np.arange(21), shift)
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], 21))
    found = pairs.best_overlaps(base, base[order] * signs[:, None])
    np.testing.assert_array_equal(found.match, order)
    np.testing.assert_allclose(found.overlap, 1.0, rtol=1e-12)


def test_overlaps_in_blocks_are_those_of_the_whole_product() -> None:
    base, tuned = orthonormal(700, 800, 1), orthonormal(600, 800, 2)
    product = np.abs(tuned.numpy() @ base.numpy().T)
    found = pairs.best_overlaps(base, tuned)
    np.testing.assert_array_equal(found.match, product.argmax(axis=1))
    np.testing.assert_allclose(found.overlap, product.max(axis=1), rtol=1e-12)


def test_intruders_are_counted_among_the_ten_largest() -> None:
    overlap = np.array([0.9, 0.49, 0.5, 0.1] + [1.0] * 6 + [0.0] * 5)
    assert pairs.intruders(pairs.Overlaps(overlap=overlap, match=np.zeros(15, np.int64))) == 2


@pytest.mark.parametrize("count", [1, 9, 10, 11, 384, 1000])
def test_deciles_are_those_of_the_queries(count: int) -> None:
    found = pairs.decile_ranks(count)
    expected: dict[int, list[int]] = {}
    for k in range(count):
        expected.setdefault(10 - (10 * k) // count, []).append(k)
    assert {number: list(ranks) for number, ranks in found} == expected


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.3, np.pi / 4, 1.2, np.pi / 2])
def test_a_rotation_by_a_known_angle_is_measured(angle: float) -> None:
    basis = orthonormal(4, 30, 3)
    base = basis[:2]
    tuned = torch.stack([basis[0], np.cos(angle) * basis[1] + np.sin(angle) * basis[2]])
    found = pairs.principal_angles(base, tuned)
    assert found.angle_largest == pytest.approx(angle, rel=1e-6, abs=1e-14)
    assert found.angle_smallest == pytest.approx(0.0, abs=1e-7)
    assert found.overlap == pytest.approx((1 + np.cos(angle) ** 2) / 2)
    assert found.dimensions == 2


def test_principal_angles_are_scipy_s() -> None:
    base, tuned = orthonormal(6, 20, 4), orthonormal(6, 20, 5)
    truth = subspace_angles(base.numpy().T, tuned.numpy().T)
    found = pairs.principal_angles(base, tuned)
    assert found.angle_largest == pytest.approx(truth.max(), rel=1e-10)
    assert found.angle_smallest == pytest.approx(truth.min(), rel=1e-10)
    assert found.angle_mean == pytest.approx(truth.mean(), rel=1e-10)
    assert found.overlap == pytest.approx(np.mean(np.cos(truth) ** 2), rel=1e-10)
