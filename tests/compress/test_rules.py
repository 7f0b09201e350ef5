"""Ranks within a budget, which triplets are kept, and the factors: against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanner.compress.rules import (
    Factors,
    as_ranges,
    cholesky,
    kept_ranks,
    rank_within,
    scores_of,
    truncated,
    whitened,
)
from scanner.rmt.analysis import analyze
from scanner.rmt.decomposition import decompose

RNG = np.random.default_rng(7)


def product(factors: Factors) -> np.ndarray:
    return (factors.left.double() @ factors.right.double()).numpy()


@pytest.mark.parametrize(("budget", "rows", "cols"), [(0.9, 576, 1536), (0.5, 10, 10), (0.9, 3, 4), (0.7, 64, 1)])
def test_the_rank_is_the_largest_within_the_budget(budget: float, rows: int, cols: int) -> None:
    rank = rank_within(budget, rows, cols)
    assert (rank + 1) * (rows + cols) > budget * rows * cols
    assert rank == 1 or rank * (rows + cols) <= budget * rows * cols
    assert rank_within(0.5, 12, 12) == 3  # 3 * 24 is exactly half of 144
    with pytest.raises(ValueError, match="between 0 and 1"):
        rank_within(1.0, rows, cols)


def test_the_largest_scores_are_kept_and_nan_comes_last() -> None:
    assert kept_ranks(np.array([1.0, np.nan, 3.0, 3.0, 0.5]), 3).tolist() == [0, 2, 3]
    assert kept_ranks(np.array([np.nan, 2.0, 2.0]), 1).tolist() == [1]
    assert as_ranges(np.array([0, 1, 2, 5, 7, 8])) == "0-2,5,7-8"


def test_truncation_by_energy_is_the_best_of_its_rank() -> None:
    matrix = RNG.standard_normal((12, 20))
    parts = decompose(torch.from_numpy(matrix))
    scores, rule = scores_of("energy", parts, float(matrix.sum()), None)
    found = truncated(parts, kept_ranks(scores, 5))
    u, s, v = np.linalg.svd(matrix)
    np.testing.assert_allclose(product(found), (u[:, :5] * s[:5]) @ v[:5], atol=1e-6)
    assert (rule, found.rank, found.parameters) == ("energy", 5, 5 * 32)
    assert found.kept is not None
    assert found.kept.tolist() == [0, 1, 2, 3, 4]


def test_importance_is_what_a_triplet_adds_to_the_mean_square_of_the_output() -> None:
    matrix, tokens = RNG.standard_normal((9, 14)), RNG.standard_normal((200, 14)) + 1.0
    second = tokens.T @ tokens / len(tokens)
    parts = decompose(torch.from_numpy(matrix))
    scores, _ = scores_of("importance", parts, 0.0, torch.from_numpy(second))
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    for k in range(9):
        added = ((tokens @ np.outer(u[:, k] * s[k], v[k]).T) ** 2).sum() / len(tokens)
        assert scores[k] == pytest.approx(added, rel=1e-9)
    assert scores.sum() == pytest.approx(((tokens @ matrix.T) ** 2).sum() / len(tokens), rel=1e-9)
    with pytest.raises(ValueError, match="second moments"):
        scores_of("importance", parts, 0.0, None)


@pytest.mark.parametrize("rule", ["p", "p_scale"])
def test_p_values_are_those_of_an_analysis(rule: str) -> None:
    matrix = RNG.standard_normal((60, 90)) * np.exp(RNG.standard_normal((60, 1)))
    matrix += 40.0 * np.outer(np.eye(60)[3], np.eye(90)[5])
    analysis = analyze(matrix)
    scores, used = scores_of(rule, decompose(torch.from_numpy(matrix)), float(matrix.sum()), None)  # type: ignore[arg-type]
    assert used == rule
    assert analysis.u_p_scale is not None
    assert analysis.v_p_scale is not None
    window = [(analysis.u_p, analysis.v_p), (analysis.u_p_scale, analysis.v_p_scale)][rule == "p_scale"]
    for k in (0, 20, 59):
        near = slice(max(0, k - 7), k + 8)
        assert scores[k] == pytest.approx(-(window[0][near].mean() + window[1][near].mean()) / 2, rel=1e-5)


def test_the_small_end_is_kept_where_it_carries_information() -> None:
    """A matrix whose smallest singular vectors are localized: energy drops them, p keeps them."""
    u, v = (np.linalg.qr(RNG.standard_normal((80, 80)))[0] for _ in range(2))
    small = np.eye(80)[:, :20]
    u = np.hstack([small, np.linalg.qr(np.vstack([np.zeros((20, 60)), RNG.standard_normal((60, 60))]))[0]])[:, ::-1]
    v = np.hstack([small, np.linalg.qr(np.vstack([np.zeros((20, 60)), RNG.standard_normal((60, 60))]))[0]])[:, ::-1]
    matrix = (u * np.linspace(2.0, 0.1, 80)) @ v.T
    parts = decompose(torch.from_numpy(matrix))
    by_p = kept_ranks(scores_of("p", parts, float(matrix.sum()), None)[0], 15)
    assert set(by_p.tolist()) <= set(range(60, 80))
    assert kept_ranks(scores_of("energy", parts, 0.0, None)[0], 15).tolist() == list(range(15))


def test_whitening_has_the_least_error_on_the_tokens() -> None:
    matrix = RNG.standard_normal((10, 16))
    tokens = RNG.standard_normal((400, 16)) * np.linspace(3.0, 0.1, 16)
    factor = cholesky(torch.from_numpy(tokens.T @ tokens / 400))
    found = product(whitened(torch.from_numpy(matrix), factor, 4))
    error = np.linalg.norm(tokens @ (matrix - found).T)
    # The best approximation of the outputs of rank 4 is the truncated SVD of the outputs themselves (Eckart, Young).
    outputs = tokens @ matrix.T
    assert error == pytest.approx(np.linalg.norm(np.linalg.svd(outputs, compute_uv=False)[4:]), rel=1e-5)
    parts = decompose(torch.from_numpy(matrix))
    plain = product(truncated(parts, np.arange(4)))
    assert error < 0.9 * np.linalg.norm(tokens @ (matrix - plain).T)


def test_moments_of_few_tokens_have_a_factor_after_a_small_ridge() -> None:
    tokens = RNG.standard_normal((3, 8))
    second = torch.from_numpy(tokens.T @ tokens)
    factor = cholesky(second)
    torch.testing.assert_close(factor @ factor.T, second, atol=1e-6, rtol=0.0)
    with pytest.raises(ValueError, match="zero or not finite"):
        cholesky(torch.zeros(4, 4))
