"""The decomposition against float32 SVDs (numpy, scipy, torch) in time, and against other Gram-matrix methods in accuracy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import measure

import numpy as np  # isort: skip
import scipy.linalg
import torch
from numpy.typing import NDArray
from spectra import Matrix, even_in_logarithm, one_outlier, spiked, with_spectrum

from scanner.rmt.decomposition import decompose
from scanner.rmt.metrics import numerical_rank

NAME = "decomposition"
# Shape, and the required speedup over numpy's float32 SVD.
TIMED = [((1024, 1024), 1.7), ((2048, 2048), 2.2), ((1536, 576), 2.3)]
QUICK_TIMED = [((128, 128), None), ((192, 72), None)]
SHAPES, QUICK_SHAPES = [(1000, 1000), (1536, 576)], [(120, 120), (160, 60)]
CONDITIONS = (1e4, 1e5, 1e6, 1e7, 1e8)
SPECTRA: dict[str, Callable[[int, float], Matrix]] = {
    "even in logarithm": even_in_logarithm,
    "one outlier": one_outlier,
}
WORST_ERROR = 1e-6
# Where the full SVD is used, accuracy is guaranteed only for values above this fraction of the largest.
PROMISED_ABOVE = 1e-6


def time_one(shape: tuple[int, int], asked: float | None, repeats: int) -> list[measure.Row]:
    w = spiked(*shape, np.random.default_rng(0)).astype(np.float32)
    tensor = torch.from_numpy(w)
    contestants: dict[str, Callable[[], object]] = {
        "decompose": lambda: decompose(tensor),
        # Given float32, numpy computes in float64 and rounds the result; scipy and torch compute in float32.
        "numpy.linalg.svd float32": lambda: np.linalg.svd(w, full_matrices=False),
        "scipy.linalg.svd float32": lambda: scipy.linalg.svd(w, full_matrices=False),
        "torch.linalg.svd float32": lambda: torch.linalg.svd(tensor, full_matrices=False),
    }
    for run in contestants.values():  # the first call of each pays for loading and for memory
        run()
    timed = {name: (lambda run=run: measure.seconds(run)) for name, run in contestants.items()}
    found = {name: measure.median(times) for name, times in measure.alternate(timed, repeats).items()}
    ours = found.pop("decompose")
    return [
        {"shape": f"{shape[0]}x{shape[1]}", "against": name, "decompose_s": ours, "other_s": other}
        | measure.at_least(other / ours, asked if name.startswith("numpy") else None)
        for name, other in found.items()
    ]


def worst_error(found: NDArray[np.floating[Any]], truth: NDArray[np.floating[Any]]) -> float:
    """Return the largest relative error of a singular value; both arrays are in descending order."""
    return float(np.max(np.abs(np.asarray(found, dtype=np.float64) - truth) / truth))


def roots_of_gram(w: Matrix) -> Matrix:
    """Return the square roots of the eigenvalues of the Gram matrix of the smaller side."""
    eigenvalues: Matrix = scipy.linalg.eigvalsh(w.T @ w)[::-1]
    return np.sqrt(np.maximum(eigenvalues, 0.0))


def column_norms(w: Matrix) -> Matrix:
    """Return |A v_k| for the eigenvectors of the Gram matrix, without a second pass for the small values."""
    vectors = scipy.linalg.eigh(w.T @ w, driver="evd")[1]
    return np.sort(np.linalg.norm(w @ vectors, axis=0))[::-1]


def errors_of(spectrum: str, shape: tuple[int, int], condition: float) -> measure.Row:
    rng = np.random.default_rng([1, *shape, int(np.log10(condition))])
    w = with_spectrum(SPECTRA[spectrum](min(shape), condition), *shape, rng)
    truth = np.linalg.svd(w, compute_uv=False)
    ours = decompose(torch.from_numpy(w))
    # Rounding to float32 gives another matrix: the float32 SVD is compared with the singular values of the rounded matrix.
    rounded = w.astype(np.float32)
    rounded_truth = np.linalg.svd(rounded.astype(np.float64), compute_uv=False)
    error = worst_error(ours.singular_values.numpy(), truth)
    return {
        "spectrum": spectrum,
        "shape": f"{shape[0]}x{shape[1]}",
        "condition": condition,
        "decompose": error,
        "asked": f"<= {WORST_ERROR:g}",
        "met": "yes" if error <= WORST_ERROR else "NO",
        "method": ours.method,
        "column norms": worst_error(column_norms(w), truth),
        "sqrt(Gram)": worst_error(roots_of_gram(w), truth),
        "float32 SVD": worst_error(scipy.linalg.svd(rounded, compute_uv=False), rounded_truth),
    }


def fall_back(case: str, s: Matrix, shape: tuple[int, int]) -> measure.Row:
    """Compare a matrix beyond the reach of the Gram matrix with the spectrum from which it was made."""
    found = decompose(torch.from_numpy(with_spectrum(s, *shape, np.random.default_rng(2))))
    values = found.singular_values.numpy()
    promised = s > PROMISED_ABOVE * s[0]
    error = worst_error(values[promised], s[promised]) if promised.any() else float(np.abs(values).max())
    rank, true_rank = numerical_rank(values, *shape), int(np.count_nonzero(s))
    met = error <= WORST_ERROR and rank == true_rank
    return {
        "case": case,
        "shape": f"{shape[0]}x{shape[1]}",
        "method": found.method,
        "rank": rank,
        "true rank": true_rank,
        "decompose": error,
        "asked": f"<= {WORST_ERROR:g}",
        "met": "yes" if met else "NO",
    }


def fall_backs(shape: tuple[int, int]) -> list[measure.Row]:
    count = min(shape)
    deficient = np.where(np.arange(count) < count // 2, np.linspace(3.0, 1.0, count), 0.0)
    cases = {
        "half the rank": deficient,
        "zero matrix": np.zeros(count),
        "condition 1e10": even_in_logarithm(count, 1e10),
        "condition 1e12": even_in_logarithm(count, 1e12),
    }
    return [fall_back(case, s, shape) for case, s in cases.items()]


def main() -> int:
    args = measure.options(NAME, __doc__, repeats=5).parse_args()
    machine = measure.machine()
    repeats = 1 if args.quick else args.repeats
    times = [row for shape, asked in (QUICK_TIMED if args.quick else TIMED) for row in time_one(shape, asked, repeats)]
    measure.table(f"Singular values and both sides' vectors, seconds, median of {repeats}, one thread", times)
    shapes = QUICK_SHAPES if args.quick else SHAPES
    errors = [errors_of(spectrum, shape, c) for spectrum in SPECTRA for shape in shapes for c in CONDITIONS]
    measure.table("Worst relative error of any singular value, against a float64 SVD", errors)
    rescued = [row for shape in shapes for row in fall_backs(shape)]
    measure.table(f"The fall-back: worst relative error of values above {PROMISED_ABOVE:g} of the largest", rescued)
    measure.write_json(
        args.json,
        {"quick": args.quick, "machine": machine, "times": times, "errors": errors, "fall_back": rescued},
    )
    return int(any(row["met"] == "NO" for row in [*errors, *rescued]))


if __name__ == "__main__":
    sys.exit(main())
