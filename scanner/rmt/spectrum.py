"""What the metrics of a spectrum are computed from, and computing those that were chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scanner.rmt.marchenko_pastur import FloatArray
from scanner.rmt.metric_set import FAILURE, metric_named


class MetricError(ArithmeticError):
    """A metric means nothing for this matrix; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The singular values of an m x n matrix, and what its analysis found of their bulk."""

    singular_values: FloatArray
    """All min(m, n) of them, descending, as multiples of `unit`."""
    unit: float
    """A power of two near the largest singular value, so that squares neither overflow nor underflow."""
    rows: int
    """m."""
    cols: int
    """n."""
    rank: int
    """How many are not numerically zero."""
    triplets: int
    """How many have vectors: min(m, n), or the width of a product of thin factors."""
    sigma: float
    """Standard deviation of an entry of the random part, as a multiple of `unit`."""
    upper: float
    """Upper edge of the bulk, as a multiple of `unit`."""
    lower: float
    """Lower edge of the bulk, as a multiple of `unit`."""
    independent: bool
    """Whether the entries of a random matrix of this kind are independent: not for products of two weights."""
    entries: Callable[[], FloatArray]
    """Makes the entries of the matrix, (m, n), as multiples of `unit`."""

    @property
    def lo(self) -> int:
        """min(m, n)."""
        return min(self.rows, self.cols)

    @property
    def hi(self) -> int:
        """max(m, n)."""
        return max(self.rows, self.cols)

    @property
    def nonzero(self) -> FloatArray:
        """The singular values that are not numerically zero, as multiples of `unit`."""
        return self.singular_values[: self.rank]

    @property
    def eigenvalues(self) -> FloatArray:
        """Squared singular values, ascending, in the units of the matrix.

        Raises:
            MetricError: they are out of the range of float64.
        """
        with np.errstate(over="ignore"):
            found: FloatArray = (self.singular_values[::-1] * self.unit) ** 2
        if not np.isfinite(found.sum()):
            raise MetricError("squared singular values exceed the range of float64")
        return found

    @property
    def bulk_failure(self) -> str | None:
        """Why there is no bulk to compare with the Marchenko-Pastur law; None if there is one."""
        if not self.independent:
            return "a product of two weights does not follow the Marchenko-Pastur law"
        if self.lo < 2:
            return "a single singular value has no bulk"
        if 2 * self.rank <= self.lo:
            return "half of the singular values or more are numerically zero, so that there is no bulk"
        return None if self.sigma > 0.0 else "sigma is 0"

    def require_bulk(self) -> None:
        """Check that there is a bulk.

        Raises:
            MetricError: there is none.
        """
        if self.bulk_failure is not None:
            raise MetricError(self.bulk_failure)


def compute(names: Iterable[str], spectrum: Spectrum) -> dict[str, Any]:
    """Compute metrics by name: values of all their columns.

    None stands where there is no number; column `metrics_failure` then says which metric is missing, and why. No value is NaN or
    infinite; in columns of `vectors`, NaN stands for "not an outlier".
    """
    found: dict[str, Any] = {}
    failures: dict[str, list[str]] = {}
    for name in names:
        metric = metric_named(name)
        module, _, function = metric.function.rpartition(".")
        call: Callable[[Spectrum], Mapping[str, Any]] = getattr(
            importlib.import_module(f"scanner.rmt.{module}"), function
        )
        found |= dict.fromkeys(column.name for column in metric.columns)
        try:
            with np.errstate(all="ignore"):  # what is out of range is noticed below
                values = call(spectrum)
            infinite = [key for key, value in values.items() if isinstance(value, float) and not np.isfinite(value)]
            found |= {key: None if key in infinite else value for key, value in values.items()}
            if infinite:
                failures.setdefault("out of the range of float64", []).extend(infinite)
        except MetricError as error:
            failures.setdefault(str(error), []).append(name)
            found |= {column.name: str(error) for column in metric.columns if column.name.endswith("_failure")}
    return found | {FAILURE: "; ".join(f"{', '.join(which)}: {why}" for why, which in failures.items()) or None}
