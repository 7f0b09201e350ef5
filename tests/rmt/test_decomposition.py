"""The decomposition, compared with the float64 SVD of numpy for many shapes, condition numbers and structures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.rmt import decomposition
from scanner.rmt.decomposition import DecompositionError, decompose
from tests.rmt.matrices import graded, orthonormal, with_spectrum


def _check_factors(w: np.ndarray, tolerance: float = 1e-9) -> None:
    found = decompose(torch.from_numpy(w))
    s, left, right = found.singular_values.numpy(), found.left.numpy(), found.right.numpy()
    assert left.shape == (min(w.shape), w.shape[0])
    assert right.shape == (min(w.shape), w.shape[1])
    assert (np.diff(s) <= 0).all()
    assert np.linalg.norm(left.T * s @ right - w) <= tolerance * max(float(np.linalg.norm(w)), 1e-300)
    assert np.linalg.norm(left, axis=1) == pytest.approx(np.ones(len(s)), abs=1e-12)
    assert np.linalg.norm(right, axis=1) == pytest.approx(np.ones(len(s)), abs=1e-12)


@pytest.mark.parametrize("shape", [(200, 200), (300, 120), (120, 300)])
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e5, 1e6, 3e6, 1e7, 1e8, 9e8, 1.1e9, 1e11])
def test_small_singular_values_are_right(shape: tuple[int, int], condition: float) -> None:
    w = graded(*shape, condition, np.random.default_rng(0))
    truth = np.linalg.svd(w, compute_uv=False)
    found = decompose(torch.from_numpy(w))
    above = truth > 1e-6 * truth[0]
    error = np.abs(found.singular_values.numpy() - truth) / truth
    assert error[above].max() < 1e-10
    if condition <= 1e9:
        assert error.max() < 1e-7
    assert found.method == ("gram" if condition < 1e9 else "svd")
    _check_factors(w)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    exponent=st.sampled_from([-300, -30, 0, 30, 150]),
    rank=st.integers(0, 40),
)
def test_any_matrix_is_its_factors(rows: int, cols: int, seed: int, exponent: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    rank = min(rank, rows, cols)
    w = (rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols))) * 10.0**exponent
    truth = np.linalg.svd(w, compute_uv=False)
    found = decompose(torch.from_numpy(w)).singular_values.numpy()
    assert found == pytest.approx(truth, rel=1e-9, abs=1e-12 * max(truth[0], 1e-300))
    _check_factors(w / 10.0**exponent)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_floating_type_is_computed_in_float64(dtype: torch.dtype) -> None:
    w = torch.randn(60, 90, generator=torch.Generator().manual_seed(0)).to(dtype)
    truth = np.linalg.svd(w.double().numpy(), compute_uv=False)
    assert decompose(w).singular_values.numpy() == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(("condition", "bound"), [(1e6, 1e-7), (1e8, 1e-5)])
def test_vectors_of_both_sides_are_orthogonal(condition: float, bound: float) -> None:
    found = decompose(torch.from_numpy(graded(300, 200, condition, np.random.default_rng(1))))
    for vectors in (found.left, found.right):
        assert float((vectors @ vectors.T - torch.eye(200, dtype=torch.float64)).abs().max()) < bound


@pytest.mark.parametrize("outlier", [1e2, 1e4, 1e6])
def test_a_huge_outlier_does_not_spoil_the_small_end(outlier: float) -> None:
    spectrum = np.concatenate([[outlier], np.linspace(2.0, 1e-3, 199)])
    w = with_spectrum(spectrum, 250, 200, np.random.default_rng(3))
    found = decompose(torch.from_numpy(w)).singular_values.numpy()
    assert found == pytest.approx(np.linalg.svd(w, compute_uv=False), rel=1e-8)


def test_vectors_are_those_of_the_construction() -> None:
    rng = np.random.default_rng(2)
    u, v = orthonormal(80, 5, rng), orthonormal(50, 5, rng)
    found = decompose(torch.from_numpy((u * [9.0, 7.0, 5.0, 3.0, 1.0]) @ v.T))
    assert np.abs(found.left[:5].numpy() @ u).diagonal() == pytest.approx(np.ones(5), abs=1e-10)
    assert np.abs(found.right[:5].numpy() @ v).diagonal() == pytest.approx(np.ones(5), abs=1e-10)


@pytest.mark.parametrize(
    "w", [np.eye(30), np.full((20, 30), 0.5), np.zeros((7, 9)), np.ones((1, 1)), np.diag([3.0, 0.0, -2.0])]
)
def test_degenerate_matrices(w: np.ndarray) -> None:
    assert decompose(torch.from_numpy(w)).singular_values.numpy() == pytest.approx(
        np.linalg.svd(w, compute_uv=False), abs=1e-12
    )
    _check_factors(w)


def test_a_transposed_view_and_a_slice_are_read_as_they_are() -> None:
    w = torch.randn(40, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for view in (w.T, w[::2, 3:50]):
        assert decompose(view).singular_values.numpy() == pytest.approx(
            np.linalg.svd(view.numpy(), compute_uv=False), rel=1e-12
        )


def test_the_input_is_left_alone() -> None:
    w = torch.randn(30, 30, dtype=torch.float64)
    before = w.clone()
    decompose(w)
    assert torch.equal(w, before)


def test_a_wrong_factor_shows_in_the_residual() -> None:
    w = with_spectrum(np.linspace(3, 1, 20), 30, 20, np.random.default_rng(5))
    d = decompose(torch.from_numpy(w))
    right = d.right.clone()
    right[3] = right[4]
    assert decomposition.relative_residual(torch.from_numpy(w), d.singular_values, d.left, d.right) < 1e-13
    assert decomposition.relative_residual(torch.from_numpy(w), d.singular_values, d.left, right) > 1e-3


def test_bad_eigenvectors_are_noticed_and_the_full_svd_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    right_eigenvectors = decomposition._eigenvectors

    def wrong(load: object) -> torch.Tensor:
        vectors = right_eigenvectors(load)  # type: ignore[arg-type]
        assert vectors is not None
        vectors[0] += 1e-3 * vectors[1]
        return vectors

    monkeypatch.setattr(decomposition, "_eigenvectors", wrong)
    w = np.random.default_rng(6).standard_normal((50, 40))
    assert decompose(torch.from_numpy(w)).method == "svd"
    _check_factors(w)


def test_eigenvectors_that_do_not_converge_are_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(decomposition.scipy.linalg, "eigh", fail)
    assert decompose(torch.eye(4)).method == "svd"


def test_nan_is_an_error_not_a_result() -> None:
    for entry in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            decompose(torch.full((4, 4), entry))


def test_two_wrong_ways_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.ones(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)

    monkeypatch.setattr(decomposition, "_eigenvectors", lambda load: None)
    monkeypatch.setattr(decomposition, "_full_svd", wrong)
    with pytest.raises(DecompositionError, match="residual"):
        decompose(torch.ones(4, 4))


def test_the_largest_floats_do_not_overflow() -> None:
    assert decompose(torch.eye(3, dtype=torch.float64) * 1.5e308).singular_values.tolist() == pytest.approx(
        [1.5e308] * 3
    )


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 2, 2)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="non-empty matrix"):
        decompose(torch.zeros(shape))
