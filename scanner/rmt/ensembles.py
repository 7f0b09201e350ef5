"""Random controls: matrices of independent random entries, which are analyzed exactly like trained ones."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scanner.rmt.vocabulary import ENSEMBLES as ENSEMBLES
from scanner.rmt.vocabulary import MATRIX_ENSEMBLES as MATRIX_ENSEMBLES
from scanner.rmt.vocabulary import Ensemble as Ensemble

if TYPE_CHECKING:
    from scanner.rmt.scale_null import Profile


def kaiming_uniform(rows: int, cols: int, rng: np.random.Generator, gain: float = 1.0) -> NDArray[np.float64]:
    """Draw a rows x cols matrix with entries from U(-b, b), b = gain sqrt(3 / fan_in), fan_in = cols; sigma = gain / sqrt(cols).

    Source: He et al., arXiv 1502.01852; `torch.nn.init.kaiming_uniform_`, the default initialization of a linear layer.
    """
    bound = gain * np.sqrt(3.0 / cols)
    return rng.uniform(-bound, bound, size=(rows, cols))


def control(ensemble: Ensemble, rows: int, cols: int, seed: int) -> NDArray[np.float64]:
    """Draw the rows x cols control matrix of an ensemble; its entries have variance 1 / max(rows, cols).

    The same arguments give the same matrix on every machine, and different shapes give independent ones.

    Raises:
        ValueError: `ensemble` is not one of `ENSEMBLES`.
    """
    rng = np.random.default_rng([seed, rows, cols, zlib.crc32(ensemble.encode())])
    if ensemble == "gaussian":
        return rng.normal(scale=1.0 / np.sqrt(max(rows, cols)), size=(rows, cols))
    if ensemble == "kaiming_uniform":
        return kaiming_uniform(rows, cols, rng, gain=float(np.sqrt(cols / max(rows, cols))))
    raise ValueError(f"unknown ensemble {ensemble!r}; known: {', '.join(ENSEMBLES)}")


def control_of(
    ensemble: Ensemble, matrix: NDArray[np.floating], seed: int, profile: Profile | None = None
) -> NDArray[np.float64]:
    """Draw a control that is made from a matrix W.

    `permuted`: the entries of W in random order, which keeps their distribution only (what WeightWatcher calls `randomize`).
    `sign`: |W_ij| with random signs, which keeps their places as well. `scale`: independent Gaussian entries with the row and
    column variances of W.

    Args:
        ensemble: one of `MATRIX_ENSEMBLES`.
        matrix: W, (m, n).
        seed: the same seed gives the same control of a matrix on every machine.
        profile: variances of W, which `scale` needs.

    Raises:
        ValueError: `ensemble` is not one of `MATRIX_ENSEMBLES`, or `scale` has no profile.
    """
    rows, cols = matrix.shape
    rng = np.random.default_rng([seed, rows, cols, zlib.crc32(ensemble.encode())])
    if ensemble == "permuted":
        return rng.permutation(matrix.ravel()).reshape(rows, cols).astype(np.float64)
    if ensemble == "sign":
        return np.asarray(np.abs(matrix) * rng.choice((-1.0, 1.0), size=(rows, cols)), dtype=np.float64)
    if ensemble == "scale" and profile is not None:
        a, b = (np.sqrt(variances.cpu().numpy()) for variances in (profile.rows, profile.cols))
        return np.asarray(a[:, None] * rng.standard_normal((rows, cols)) * b, dtype=np.float64)
    raise ValueError(
        f"{ensemble!r} cannot be drawn from a matrix" + (" without its variances" if ensemble == "scale" else "")
    )
