"""Null distribution of D for unit vectors, by Monte Carlo: a shipped table, or a simulation of the exact length.

Textbook tables of the Kolmogorov-Smirnov statistic do not apply: a singular vector is normalized, which makes D smaller (with
`scipy.stats.kstwo`, random vectors of length 768 have a mean p of 0.54 instead of 0.5).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

#: Lengths of the shipped table. Quantiles are interpolated in 1/sqrt(n); beyond the last length, the scaled statistic is used.
TABLE_LENGTHS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 2048, 4096)
TABLE_DRAWS = 1_000_000
_TABLE_FILE = "ks_null.npz"
# The table is continued from this probability on, at which it is made of a hundred draws, for vectors of at least this length.
_JOINT, _SHORTEST_CONTINUED = 1e-4, 24
#: Smaller p-values are not told apart; single precision holds it.
SMALLEST_P = 1e-37
DEFAULT_SEED = 20241017


def scaled(ks: ArrayLike, length: int) -> FloatArray:
    """Return D (sqrt(n) + 0.12 + 0.11 / sqrt(n)), which is almost independent of n.

    Source: Stephens, J. R. Stat. Soc. B 32, 115 (1970).
    """
    root = np.sqrt(length)
    return np.asarray(np.asarray(ks, dtype=np.float64) * (root + 0.12 + 0.11 / root))


def simulate(length: int, draws: int, seed: int = DEFAULT_SEED) -> NDArray[np.float32]:
    """Simulate D of `draws` Gaussian vectors, each normalized to length 1; ascending, shape (draws,).

    Raises:
        ValueError: length < 2 (the entry of a unit vector of length 1 is +-1, which cannot be tested) or draws < 1.
    """
    import torch

    from scanner.rmt.entries import (
        entry_statistics,  # the rest of this module does without torch, which takes long to load
    )

    if length < 2 or draws < 1:
        raise ValueError(f"the null needs `length` >= 2 and `draws` >= 1, got length {length}, draws {draws}")
    rng = np.random.default_rng([seed, length])
    block = max(1, (1 << 20) // length)
    found = np.empty(draws, dtype=np.float32)
    for start in range(0, draws, block):
        count = min(block, draws - start)
        vectors = torch.from_numpy(rng.standard_normal((count, length), dtype=np.float32))
        vectors /= torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        found[start : start + count] = entry_statistics(vectors).ks.numpy()
    found.sort()
    return found


@dataclass(frozen=True, kw_only=True)
class KsNull:
    """How p-values follow from D: from the shipped table, or from a simulation of the exact length."""

    draws: int | None = None
    """Number of simulated vectors; None: the shipped table."""
    continued: bool = True
    """Whether p-values of the table are continued below those that it holds; if not, none is below 1e-6."""

    @classmethod
    def parse(cls, text: str) -> KsNull:
        """Parse `table` or `mc:N`.

        Raises:
            ValueError: anything else, or N < 1.
        """
        if text == "table":
            return cls()
        kind, _, number = text.partition(":")
        if kind == "mc" and number.isdecimal() and int(number) > 0:
            return cls(draws=int(number))
        raise ValueError(
            f"unknown null {text!r}: it is `table` (shipped) or `mc:N` (N simulated vectors of the exact length)"
        )

    def __str__(self) -> str:
        return "table" if self.draws is None else f"mc:{self.draws}"

    def p_values(self, ks: ArrayLike, length: int) -> FloatArray:
        """Return p = (1 + #{null draws with D_null >= D}) / (1 + number of draws) for D of vectors of one length; same shape.

        Below 1e-4 the table is continued by exp(-2 x^2), the tail of Kolmogorov's law in the scaled statistic x, times the
        constant that joins them. (Near its maximum the process whose supremum D is has the variance of Kolmogorov's, so that
        normalizing the vector changes the constant only.) p is not below `SMALLEST_P`, and 1e-6 for vectors of fewer than 24
        entries.
        p is NaN for vectors with a single entry, which have no distribution.
        """
        ks = np.asarray(ks, dtype=np.float64)
        if length < 2:
            return np.full(ks.shape, np.nan)
        if self.draws is not None:
            null = _simulated(length, self.draws)
            # Compared in the precision of the null: rounding must not decide between >= and >.
            at_least = self.draws - np.searchsorted(null, ks.astype(null.dtype), side="left")
            return np.asarray((1.0 + at_least) / (1.0 + self.draws), dtype=np.float64)
        curve, log_p = _quantiles(length)
        x = scaled(ks, length)
        log = np.interp(x, curve, log_p)
        if self.continued and length >= _SHORTEST_CONTINUED:
            joint = float(np.interp(-np.log(_JOINT), -log_p, curve))
            tail = np.log(_JOINT) - 2.0 * (x**2 - joint**2)
            log = np.where(x > joint, np.maximum(tail, np.log(SMALLEST_P)), log)
        return np.exp(log)


def effects(ks: ArrayLike, length: int) -> FloatArray:
    """Return the scaled statistic minus its mean under the null, for D of vectors of one length; same shape.

    About 0 +- 0.25 for random vectors of any length, and sqrt(n) D - 0.83 for large n: p-values saturate, this does not. NaN for
    vectors with a single entry.
    """
    if length < 2:
        return np.full(np.shape(ks), np.nan)
    return scaled(ks, length) - _null_mean(length)


@lru_cache(maxsize=4096)
def _null_mean(length: int) -> float:
    """Return the mean of the scaled statistic under the null."""
    curve, log_p = _quantiles(length)
    return float(np.trapezoid(curve, 1.0 - np.exp(log_p)))


@lru_cache(maxsize=64)
def _simulated(length: int, draws: int) -> NDArray[np.float32]:
    return simulate(length, draws)


@dataclass(frozen=True, kw_only=True)
class NullTable:
    """Quantiles of the scaled statistic: `quantiles[i, j]` is exceeded with probability `survival[j]` at `lengths[i]`."""

    lengths: NDArray[np.int64]
    survival: FloatArray  # descending, so that every row of quantiles is ascending
    quantiles: FloatArray
    draws: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as an .npz of plain arrays."""
        quantiles = self.quantiles.astype(np.float32)
        np.savez_compressed(path, lengths=self.lengths, survival=self.survival, quantiles=quantiles, draws=self.draws)


def survival_grid(draws: int) -> FloatArray:
    """Return the probabilities at which the table has quantiles: linear in the middle, logarithmic at both ends; descending."""
    smallest = np.log10(1.0 / (1.0 + draws))
    tail = np.logspace(smallest, -2, 121)
    middle = np.linspace(0.01, 0.99, 197)
    return np.unique(np.concatenate([tail, middle, 1.0 - tail]))[::-1]


def tabulate(length: int, draws: int, seed: int = DEFAULT_SEED) -> FloatArray:
    """Compute one row of the table: quantiles of the scaled statistic at `survival_grid(draws)`."""
    null = scaled(simulate(length, draws, seed), length)
    # p of the i-th smallest of N draws is (1 + N - i) / (1 + N), i = 0 ... N-1: the definition of p, inverted.
    p = (1.0 + draws - np.arange(draws)) / (1.0 + draws)
    return np.interp(-survival_grid(draws), -p, null)


@lru_cache(maxsize=1)
def shipped_table() -> NullTable:
    """Load the table that the package contains; `rmtscan calibrate` computes it."""
    with resources.files("scanner.rmt").joinpath(_TABLE_FILE).open("rb") as file, np.load(file) as data:
        return NullTable(
            lengths=data["lengths"],
            survival=data["survival"],
            quantiles=data["quantiles"].astype(np.float64),
            draws=int(data["draws"]),
        )


@lru_cache(maxsize=4096)
def _quantiles(length: int) -> tuple[FloatArray, FloatArray]:
    """Return the quantiles of one length (ascending), and log p at each."""
    table = shipped_table()
    x, at = 1.0 / np.sqrt(length), 1.0 / np.sqrt(table.lengths)
    upper = min(int(np.searchsorted(table.lengths, length)), len(table.lengths) - 1)
    lower = max(upper - 1, 0)
    weight = float(np.clip((at[lower] - x) / (at[lower] - at[upper]), 0.0, 1.0)) if lower != upper else 1.0
    curve = (1.0 - weight) * table.quantiles[lower] + weight * table.quantiles[upper]
    return curve, np.log(table.survival)


def make_table(
    draws: int = TABLE_DRAWS, lengths: tuple[int, ...] = TABLE_LENGTHS, seed: int = DEFAULT_SEED
) -> NullTable:
    """Simulate the whole table; 10^6 draws per length take about four minutes on one core."""
    quantiles = np.stack([tabulate(length, draws, seed) for length in lengths])
    return NullTable(lengths=np.array(lengths), survival=survival_grid(draws), quantiles=quantiles, draws=draws)
