"""Full singular value decomposition in float64: fast enough for every matrix, and accurate for small singular values.

It uses the Gram matrix of the smaller side: A^T A = V L V^T, B = A V, s_k = |B e_k|, u_k = B e_k / s_k. The square roots of L
would lose half of the digits of a small singular value. The column norms of B do not, because an error of order eps in v_k enters
|A v_k| only in second order. This holds while the Gram matrix resolves the small directions; from a condition number of 1e6 on it
does not, and errors grow to 1e-5 and more. So the block of columns of B that belong to small values is decomposed once more in the
same way (deflation): rounding is now relative to the largest value of the block, and errors stay below 1e-9 up to a condition
number of 1e7, and below 1e-7 up to `GRAM_CONDITION_LIMIT`. Beyond it, mainly for rank-deficient matrices, a full float64 SVD is
used.
`benchmarks/bench_decomposition.py` compares all of this with sqrt(L) and a float32 SVD.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import torch
from scipy.linalg import lapack
from scipy.linalg.blas import dsyrk

SvdMethod = Literal["gram", "svd", "low_rank", "product"]

_NO_CONVERGENCE = (np.linalg.LinAlgError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]

#: Condition number up to which the Gram matrix is used.
GRAM_CONDITION_LIMIT = 1e9
#: Largest allowed relative residual of a decomposition; correct ones have 1e-13 or less.
RESIDUAL_LIMIT = 1e-9

_PROBES = 2
# Values below this share of the largest are decomposed again, if the condition number requires it.
_DEFLATION = 1e-3
_DEFLATION_CONDITION = 1e5
# Above this share of the largest, the square root of an eigenvalue of the Gram matrix is right to 2e-10.
_TRUSTED = 5e-3
# Condition number up to which values are computed without all vectors.
_VALUES_CONDITION = 1e8
# The whole decomposition is faster if vectors of more than this share of the values are needed.
_MOST_VECTORS = 0.25


class DecompositionError(ArithmeticError):
    """No method found a decomposition that reproduces the matrix."""


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """W = sum_k s_k u_k v_k^T, k = 0 the largest; float64 tensors on the device of W.

    `singular_values` has shape (r,), r = min(m, n). The vectors are rows: `left` is (r, m), `right` is (r, n).
    `residual` estimates the relative Frobenius error of U S V^T and of its transpose on random vectors.
    """

    singular_values: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    method: SvdMethod
    residual: float


@dataclass(frozen=True, kw_only=True)
class _Factors:
    """Singular values, and the singular vectors of the smaller (near) and larger side (far) as rows."""

    s: torch.Tensor
    near: torch.Tensor
    far: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """A matrix W = left right, represented by its factors: left (m, r), right (r, n), r much smaller than m and n."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.left.shape[0], self.right.shape[1]


@dataclass(frozen=True, kw_only=True)
class Product(LowRank):
    """A product of two weights, such as W_q^T W_k of an attention head: its spectrum is compared with that of random factors."""


def decompose_low_rank(matrix: LowRank) -> Decomposition:
    """Decompose a product of thin factors exactly: QR of both, then the SVD of the r x r core.

    The result has min(m, n, r) triplets; the other singular values of W are zero, and their vectors arbitrary. `method` is
    `product` for a `Product`, else `low_rank`.

    Raises:
        ValueError: NaN or infinite entries.
    """
    left, right = matrix.left.to(torch.float64), matrix.right.to(torch.float64)
    if not bool(left.isfinite().all() and right.isfinite().all()):
        raise ValueError(f"a {matrix.shape} low-rank matrix with NaN or infinite entries has no singular values")
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return Decomposition(
        singular_values=s,
        left=(q_left @ u).T.contiguous(),
        right=vh @ q_right.T,
        method="product" if isinstance(matrix, Product) else "low_rank",
        residual=0.0,
    )


def _eigenvectors(load: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """Return the eigenvectors of the Gram matrix of the smaller side as rows, largest eigenvalue first; None if eigh fails.

    The Gram matrix is negated, so that the ascending order of LAPACK is the wanted order and nothing has to be reversed. On the
    CPU, syrk and dsyevd run in place on one buffer, and the matrix is released before eigh allocates its workspace.
    """
    matrix = load()
    rows, cols = matrix.shape
    try:
        if matrix.device.type != "cpu":
            gram = -(matrix.T @ matrix) if rows >= cols else -(matrix @ matrix.T)
            del matrix
            on_device: torch.Tensor = torch.linalg.eigh(gram).eigenvectors
            return on_device.T.contiguous()
        columns = matrix.numpy().T  # the Fortran-ordered view of the same memory
        gram = dsyrk(-1.0, columns, trans=int(rows < cols))
        del matrix, columns
        vectors = scipy.linalg.eigh(gram, lower=False, overwrite_a=True, check_finite=False, driver="evd")[1]
    except _NO_CONVERGENCE:
        return None
    return torch.from_numpy(vectors.T)


def _product(vectors: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply matrices; on the CPU with numpy, whose BLAS is faster on AMD processors."""
    if matrix.device.type == "cpu":
        return torch.from_numpy(vectors.numpy() @ matrix.numpy())
    return vectors @ matrix


def _gram(load: Callable[[], torch.Tensor]) -> _Factors | None:
    """Compute the factors with the Gram matrix, deflated if necessary; None if a full SVD is needed."""
    near = _eigenvectors(load)
    if near is None:
        return None
    matrix = load()
    far = _product(near, matrix.T if matrix.shape[0] >= matrix.shape[1] else matrix)
    del matrix
    s = torch.linalg.vector_norm(far, dim=1)
    largest = float(s.max())
    if not float(s.min()) * GRAM_CONDITION_LIMIT > largest:
        return None
    keep = int((s >= _DEFLATION * largest).sum())
    if keep < len(s) and float(s.min()) * _DEFLATION_CONDITION < largest:
        # Below `keep` the Gram matrix no longer resolves directions. Without the large values it does: rounding is relative to the
        # largest value of the block.
        block = far[keep:]
        inner = _gram(lambda: block)
        if inner is None:
            return None
        near[keep:] = _product(inner.near, near[keep:])
        s[keep:], far[keep:] = inner.s, inner.far
        far[:keep] /= s[:keep, None]
        if not float(s.min()) * GRAM_CONDITION_LIMIT > largest:
            return None
    else:
        far /= s[:, None]
    if bool((s.diff() > 0).any()):  # near-equal values, swapped by rounding
        order = s.argsort(descending=True, stable=True)
        s, near, far = s[order], near[order], far[order]
    return _Factors(s=s, near=near, far=far)


def _full_svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute s, U^T, V^T by a full float64 SVD: divide and conquer, or QR iteration if that does not converge.

    Raises:
        DecompositionError: neither converges.
    """
    try:
        if matrix.device.type != "cpu":
            u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
            return s, u.T.contiguous(), vh
        try:
            un, sn, vn = scipy.linalg.svd(
                matrix.numpy(), full_matrices=False, check_finite=False, lapack_driver="gesdd"
            )
        except np.linalg.LinAlgError:
            un, sn, vn = scipy.linalg.svd(
                matrix.numpy(), full_matrices=False, check_finite=False, lapack_driver="gesvd"
            )
    except _NO_CONVERGENCE as error:
        raise DecompositionError(
            f"the float64 SVD of a {tuple(matrix.shape)} matrix does not converge: {error}"
        ) from error
    return (
        torch.from_numpy(sn),
        torch.from_numpy(np.ascontiguousarray(un.T)),
        torch.from_numpy(np.ascontiguousarray(vn)),
    )


def relative_residual(matrix: torch.Tensor, s: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    """Estimate the relative Frobenius error of U S V^T with `_PROBES` random vectors (a Freivalds check, O(mn)).

    A full product would cost half as much as the decomposition. With the Gram matrix, U S = A V holds by construction, and only
    V V^T = 1 can be wrong, which the probes detect on either side.
    """
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((_PROBES, matrix.shape[1]))).to(matrix.device)
    expected = _product(x, matrix.T)
    error = torch.linalg.vector_norm(expected - _product(_product(x, right.T) * s, left))
    norm = float(torch.linalg.vector_norm(expected))
    return float(error) / norm if norm > 0.0 else float(error)


def unit_of(largest: float) -> float:
    """Return a power of two near a number, 1 for zero: dividing by it does not round. Its inverse is finite."""
    return 2.0 ** max(int(np.frexp(largest)[1]) - 1, -1000) if largest > 0.0 else 1.0


def _unit(matrix: torch.Tensor) -> float:
    """Return a power of two that scales the entries to about 1 without rounding, so that squares do not overflow or underflow.

    Raises:
        ValueError: not a matrix, empty, or with NaN or infinite entries.
    """
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"a decomposition needs a non-empty matrix, got shape {tuple(matrix.shape)}")
    largest = float(matrix.abs().max())
    if not np.isfinite(largest):
        raise ValueError(f"a {tuple(matrix.shape)} matrix with NaN or infinite entries has no singular values")
    return unit_of(largest)


def decompose(matrix: torch.Tensor) -> Decomposition:
    """Compute the full SVD of an (m, n) tensor of any floating-point type, in float64 on its device.

    Raises:
        ValueError: not a matrix, empty, or with NaN or infinite entries.
        DecompositionError: no decomposition with a relative residual below `RESIDUAL_LIMIT` was found.
    """
    scale = _unit(matrix)

    def load() -> torch.Tensor:
        """Convert the matrix to float64; done again when needed, so that it does not take memory beside the workspace of eigh."""
        return matrix.to(torch.float64, memory_format=torch.contiguous_format, copy=True).mul_(1.0 / scale)

    method: SvdMethod = "gram"
    gram = _gram(load)
    entries = load()
    residual = np.inf
    if gram is not None:
        tall = matrix.shape[0] >= matrix.shape[1]
        s, left, right = (gram.s, gram.far, gram.near) if tall else (gram.s, gram.near, gram.far)
        residual = relative_residual(entries, s, left, right)
    if not residual <= RESIDUAL_LIMIT:
        method = "svd"
        s, left, right = _full_svd(entries)
        residual = relative_residual(entries, s, left, right)
    if not residual <= RESIDUAL_LIMIT:
        raise DecompositionError(
            f"a {tuple(matrix.shape)} matrix does not agree with its float64 SVD: the relative residual is {residual:.1e}"
        )
    return Decomposition(singular_values=s * scale, left=left, right=right, method=method, residual=residual)


# ---- singular values without vectors


@dataclass(frozen=True, kw_only=True)
class Values:
    """Singular values of an m x n matrix without vectors: descending, float64, shape (r,), r = min(m, n) or the width of factors.

    `residual` is the relative error of sum s^2 or sum s^4, whichever is larger; of a `Decomposition`, if there was one.
    """

    singular_values: torch.Tensor
    rows: int
    cols: int
    method: SvdMethod
    residual: float


def values_low_rank(matrix: LowRank) -> Values:
    """Return the singular values of a product of thin factors; arguments and errors are those of `decompose_low_rank`."""
    found = decompose_low_rank(matrix)
    rows, cols = matrix.shape
    return Values(
        singular_values=found.singular_values, rows=rows, cols=cols, method=found.method, residual=found.residual
    )


def singular_values(matrix: torch.Tensor) -> Values:
    """Compute the singular values of an (m, n) tensor of any floating-point type, in float64 on its device, without vectors.

    The square roots of the eigenvalues of the Gram matrix are right for large values: an eigenvalue has an error of about 1e-14 of
    the largest one. For values below `_TRUSTED` of the largest, the eigenvectors of this small end are computed, and the values are
    those of the matrix in their space. If more than `_MOST_VECTORS` of the values are that small, or the condition number exceeds
    `_VALUES_CONDITION`, they come from `decompose`.

    Raises:
        ValueError: not a matrix, empty, or with NaN or infinite entries.
        DecompositionError: no decomposition with a relative residual below `RESIDUAL_LIMIT` was found.
    """
    scale = _unit(matrix)
    rows, cols = matrix.shape
    found = _gram_values(matrix.to(torch.float64, memory_format=torch.contiguous_format, copy=True).mul_(1.0 / scale))
    if found is None:
        parts = decompose(matrix)
        return Values(
            singular_values=parts.singular_values, rows=rows, cols=cols, method=parts.method, residual=parts.residual
        )
    s, residual = found
    return Values(singular_values=s * scale, rows=rows, cols=cols, method="gram", residual=residual)


def _gram_values(entries: torch.Tensor) -> tuple[torch.Tensor, float] | None:
    """Return singular values and their residual; None if vectors are needed for many of them, or something fails."""
    energy = float(entries.square().sum())
    try:
        if entries.device.type != "cpu":
            gram = entries.T @ entries if entries.shape[0] >= entries.shape[1] else entries @ entries.T
            fourth = float(gram.square().sum())
            eigenvalues = torch.linalg.eigvalsh(gram).flip(0)
            small = _untrusted(eigenvalues)
            found = None if small else eigenvalues.sqrt()
        else:
            found, fourth = _small_end(entries)
    except (*_NO_CONVERGENCE, DecompositionError):
        return None
    if found is None:
        return None
    squares = found.square()
    wrong = [abs(float(squares.sum()) - energy), abs(float(squares.square().sum()) - fourth)]
    residual = max(
        error / whole if whole > 0.0 else error for error, whole in zip(wrong, (energy, fourth), strict=True)
    )
    return (found, residual) if residual <= RESIDUAL_LIMIT else None


def _untrusted(eigenvalues: torch.Tensor) -> int:
    """Return how many eigenvalues, in descending order, are too small for their square roots to be right."""
    return int((~(eigenvalues >= _TRUSTED**2 * eigenvalues[0])).sum()) or int(not bool(eigenvalues[0] > 0.0))


def _small_end(entries: torch.Tensor) -> tuple[torch.Tensor | None, float]:
    """Return the singular values, and sum s^4 from the Gram matrix, on the CPU; None if many of them are small."""
    tall = entries.shape[0] >= entries.shape[1]
    columns = entries.numpy().T  # the Fortran-ordered view of the same memory
    gram = dsyrk(1.0, columns, trans=int(not tall), lower=1)
    # The other triangle is not computed.
    fourth = 2.0 * float(np.vdot(gram, gram)) - float(np.square(gram.diagonal()).sum())
    if len(gram) == 1:
        return torch.from_numpy(np.sqrt(gram[0])), fourth
    # Twice as fast as eigvalsh, which reduces the other triangle: that of LAPACK's routine for the lower one is in blocks.
    work = int(lapack.dsytrd_lwork(len(gram), lower=1)[0])
    reduced, diagonal, beside, tau, _ = lapack.dsytrd(gram, lower=1, lwork=work, overwrite_a=1)
    ascending, failed = lapack.dsterf(diagonal, beside)
    if failed:
        raise np.linalg.LinAlgError("the eigenvalues of a tridiagonal matrix do not converge")
    eigenvalues = torch.from_numpy(ascending[::-1].copy())
    small = _untrusted(eigenvalues)
    if small > _MOST_VECTORS * len(eigenvalues):
        return None, fourth
    s = eigenvalues.clamp(min=0.0).sqrt()
    if small:
        vectors = scipy.linalg.eigh_tridiagonal(
            diagonal, beside, select="i", select_range=(0, small - 1), check_finite=False
        )[1]
        # Back to the coordinates of the Gram matrix: the reflections are below the first subdiagonal.
        below = np.asfortranarray(reduced[1:, :-1])
        part = np.asfortranarray(vectors[1:])
        work = int(lapack.dormqr("L", "N", below, tau, part, -1)[1][0])
        vectors[1:] = lapack.dormqr("L", "N", below, tau, part, work)[0]
        space = torch.from_numpy(
            np.ascontiguousarray(scipy.linalg.qr(vectors, mode="economic", check_finite=False)[0].T)
        )
        block = _product(space, entries.T if tall else entries)
        s[-small:] = decompose(block).singular_values
        s = s.sort(descending=True).values
    # Beyond, the space of the small end has rounding errors of the large one, as large as the values in it.
    if not float(s[-1]) * _VALUES_CONDITION > float(s[0]):
        return None, fourth
    return s, fourth
