"""Singular values without vectors: as right as those of the whole decomposition."""

from __future__ import annotations

from dataclasses import fields

import mpmath
import numpy as np
import pytest
import torch

from scanner import analyze
from scanner.rmt import decomposition
from scanner.rmt.decomposition import LowRank, Product, decompose, singular_values
from scanner.rmt.result import Analysis

from .matrices import Matrix, graded, spiked, with_spectrum

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 40), (40, 3), (64, 64), (60, 90), (150, 50)]


def values(matrix: Matrix) -> Matrix:
    return np.asarray(singular_values(torch.from_numpy(np.ascontiguousarray(matrix))).singular_values)


def exact(matrix: Matrix) -> Matrix:
    """Singular values with 40 digits."""
    with mpmath.workdps(40):
        return np.array(
            sorted((float(s) for s in mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False)), reverse=True)
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_numpy(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(sum(shape)).standard_normal(shape)
    np.testing.assert_allclose(values(matrix), np.linalg.svd(matrix, compute_uv=False), rtol=1e-10)


@pytest.mark.parametrize("condition", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("shape", [(28, 28), (20, 33), (33, 20)])
def test_few_small_values_are_right_to_nine_digits(shape: tuple[int, int], condition: float) -> None:
    rng = np.random.default_rng(int(condition) + shape[0])
    spectrum = np.append(np.linspace(5.0, 1.0, min(shape) - 4), 5.0 / np.geomspace(300.0, condition, 4))
    matrix = with_spectrum(spectrum, *shape, rng)
    found = singular_values(torch.from_numpy(matrix))
    np.testing.assert_allclose(found.singular_values.numpy(), exact(matrix), rtol=1e-9)
    assert found.method == "gram"
    assert found.residual < 1e-13


@pytest.mark.parametrize("condition", [1e9, 1e12])
def test_values_that_are_smaller_still_come_from_the_whole_decomposition(condition: float) -> None:
    rng = np.random.default_rng(11)
    spectrum = np.append(np.linspace(5.0, 1.0, 90), 5.0 / np.geomspace(300.0, condition, 10))
    matrix = torch.from_numpy(with_spectrum(spectrum, 100, 100, rng))
    assert np.array_equal(singular_values(matrix).singular_values, decompose(matrix).singular_values)


@pytest.mark.parametrize("shape", [(100, 80), (60, 60), (40, 90)])
def test_the_rank_is_that_of_the_whole_decomposition(shape: tuple[int, int]) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        lo = min(shape)
        spectrum = np.concatenate([[1.0], rng.uniform(5e-3, 8e-3, lo - 1 - lo // 5), np.zeros(lo // 5)])
        matrix = with_spectrum(-np.sort(-spectrum), *shape, rng)
        alone, whole = (analyze(matrix, values_only=only) for only in (True, False))
        assert (alone.rank, alone.outliers_left) == (whole.rank, whole.outliers_left), seed


@pytest.mark.parametrize("condition", [1e3, 1e5, 1e8])
def test_many_small_values_come_from_the_whole_decomposition(condition: float) -> None:
    matrix = graded(24, 30, condition, np.random.default_rng(3))
    np.testing.assert_allclose(values(matrix), exact(matrix), rtol=1e-9)


def test_values_that_are_numerically_zero_stay_so() -> None:
    rng = np.random.default_rng(4)
    hidden = rng.standard_normal((80, 70)) @ rng.standard_normal((70, 80))
    found = values(hidden)
    assert found[69] > 1e-3 * found[0]
    assert (found[70:] < found[0] * 80 * np.finfo(np.float64).eps).all()
    assert (analyze(hidden, values_only=True).region[70:] == "null").all()


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((5, 8)),
        np.ones((9, 9)),
        np.eye(12),
        np.outer(np.arange(30.0), np.ones(20)),
        np.diag([1e150, 1.0, 1e-150]),
    ],
    ids=["zero", "constant", "identity", "rank one", "many orders"],
)
def test_hard_matrices_have_the_values_of_the_whole_decomposition(matrix: Matrix) -> None:
    whole = decompose(torch.from_numpy(matrix)).singular_values.numpy()
    np.testing.assert_allclose(values(matrix), whole, rtol=1e-9, atol=1e-14 * whole[0])


@pytest.mark.parametrize("exponent", [-300, -160, 0, 150, 300])
def test_scale_does_not_matter(exponent: int) -> None:
    matrix = np.random.default_rng(5).standard_normal((30, 40))
    np.testing.assert_allclose(values(matrix * 10.0**exponent) / 10.0**exponent, values(matrix), rtol=1e-13)


def test_other_types_are_computed_in_float64() -> None:
    matrix = torch.randn((40, 30), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    truth = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(singular_values(matrix).singular_values.numpy(), truth, rtol=1e-11)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_entries_that_are_not_finite_are_an_error(wrong: float) -> None:
    matrix = torch.ones((4, 4), dtype=torch.float64)
    matrix[1, 2] = wrong
    with pytest.raises(ValueError, match="NaN or infinite"):
        singular_values(matrix)


def test_an_eigenvalue_solver_that_fails_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(6).standard_normal((30, 30))
    monkeypatch.setattr(decomposition.lapack, "dsterf", lambda d, e: (d, 1))
    np.testing.assert_allclose(values(matrix), np.linalg.svd(matrix, compute_uv=False), rtol=1e-10)


def test_wrong_eigenvalues_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(7).standard_normal((30, 30))
    real = decomposition.lapack.dsterf
    monkeypatch.setattr(decomposition.lapack, "dsterf", lambda d, e: (real(d, e)[0] * 1.0001, 0))
    np.testing.assert_allclose(values(matrix), np.linalg.svd(matrix, compute_uv=False), rtol=1e-10)


@pytest.mark.parametrize("sigma", ["median", "std", "init", "bulk"])
def test_an_analysis_of_values_is_the_whole_one_without_vectors(sigma: str) -> None:
    rng = np.random.default_rng(8)
    matrix = spiked(120, 200, np.array([60.0, 50.0, 40.0]), rng)
    whole, alone = (analyze(matrix, sigma=sigma, values_only=only) for only in (False, True))  # type: ignore[arg-type]
    for field in fields(Analysis):
        ours, theirs = getattr(alone, field.name), getattr(whole, field.name)
        of_vectors = (
            field.name[:2] in ("u_", "v_")
            or field.name.startswith(("scale_", "heads_"))
            or field.name.endswith("_scale")
        )
        if of_vectors:
            assert ours is None or np.isnan(ours).all(), field.name
        elif field.name == "metrics":
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                if isinstance(value, str | None):
                    assert value == theirs[name], name
                else:
                    np.testing.assert_allclose(value, theirs[name], rtol=1e-8, err_msg=name)
        elif (
            isinstance(theirs, float | np.ndarray)
            and np.asarray(theirs).dtype.kind == "f"
            and field.name != "svd_residual"
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, err_msg=field.name)
        elif field.name != "svd_residual":
            assert np.array_equal(ours, theirs), field.name
    assert alone.outliers_right >= 3


def test_products_of_thin_factors_have_their_values() -> None:
    rng = np.random.default_rng(9)
    left, right = rng.standard_normal((50, 6)), rng.standard_normal((6, 40))
    truth = np.linalg.svd(left @ right, compute_uv=False)[:6]
    for kind in (LowRank, Product):
        factors = kind(left=torch.from_numpy(left), right=torch.from_numpy(right))
        found = analyze(factors, values_only=True)
        np.testing.assert_allclose(found.singular_values, truth, rtol=1e-11)
        assert (found.rows, found.cols) == (50, 40)


@pytest.mark.parametrize("options", [{"scale": "total"}, {"head_mass": True}])
def test_what_needs_vectors_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="leaves out the vectors"):
        analyze(np.eye(4), values_only=True, **options)  # type: ignore[arg-type]
