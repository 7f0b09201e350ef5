"""Random controls: matrices that have learned nothing, to be analysed exactly like the trained ones."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from scanner.rmt.vocabulary import ENSEMBLES as ENSEMBLES
from scanner.rmt.vocabulary import Ensemble as Ensemble


def kaiming_uniform(rows: int, cols: int, rng: np.random.Generator, gain: float = 1.0) -> NDArray[np.float64]:
    """rows x cols entries from U(-b, b), b = gain sqrt(3 / fan_in), fan_in = cols; so sigma = gain / sqrt(cols).

    Source: He et al., arXiv 1502.01852; `torch.nn.init.kaiming_uniform_`, the usual initialisation of a Linear.
    """
    bound = gain * np.sqrt(3.0 / cols)
    return rng.uniform(-bound, bound, size=(rows, cols))


def control(ensemble: Ensemble, rows: int, cols: int, seed: int) -> NDArray[np.float64]:
    """The rows x cols control matrix of an ensemble, entries of variance 1 / max(rows, cols).

    The same arguments give the same matrix on every machine, and different shapes give independent ones.

    Raises:
        ValueError: an ensemble that is not one of `ENSEMBLES`.
    """
    rng = np.random.default_rng([seed, rows, cols, zlib.crc32(ensemble.encode())])
    if ensemble == "gaussian":
        return rng.normal(scale=1.0 / np.sqrt(max(rows, cols)), size=(rows, cols))
    if ensemble == "kaiming_uniform":
        return kaiming_uniform(rows, cols, rng, gain=float(np.sqrt(cols / max(rows, cols))))
    raise ValueError(f"unknown ensemble {ensemble!r}; known: {', '.join(ENSEMBLES)}")
