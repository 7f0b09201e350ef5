"""Random controls: matrices of independent random entries, which are analyzed exactly like trained ones."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from scanner.rmt.vocabulary import ENSEMBLES as ENSEMBLES
from scanner.rmt.vocabulary import Ensemble as Ensemble


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
