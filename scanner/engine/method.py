"""The parameters of a scan, and the identity of a scan, which depends on the content of the checkpoint and on the parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scanner.checkpoint import Selection
from scanner.configuration import Checked, option, parameters
from scanner.errors import ConfigError, ScannerError
from scanner.rmt import vocabulary
from scanner.rmt.metric_set import DEFAULT, chosen
from scanner.rmt.vocabulary import ScaleKind, SigmaKind


def _null(text: str) -> str:
    """Check the text of a null distribution.

    Raises:
        ValueError: neither `table` nor `mc:N`.
    """
    from scanner.rmt.ks_null import KsNull

    KsNull.parse(text)
    return text


@dataclass(frozen=True, kw_only=True)
class Method(Checked):
    """Every parameter that determines the rows of a scan.

    Raises:
        ConfigError: an unknown estimate of sigma, null distribution, estimate of scales or metric.
    """

    sigma: SigmaKind = option("median", identity="sigma")
    """Estimate of sigma that determines the edges of the bulk."""
    null: str = option("table", parse=_null, metavar="table|mc:N", identity="null")
    """Null distribution of p-values: the stored table, or a Monte Carlo simulation with N draws."""
    scale: ScaleKind = option("robust", identity="scale", since="0.2", before="none")
    """Scale null: row and column variances without the values above the bulk (robust), of the whole matrix (total), or none."""
    head_mass: bool = option(False, identity="head_mass", since="0.2")
    """Also test whether the vectors of attention projections have their mass in few heads."""
    metrics: tuple[str, ...] = option(DEFAULT, metavar="NAME,...", identity="metric_set", since="0.2", before=())
    """Metrics of the spectrum: names of columns or of groups: default (rmt and weightwatcher), rmt, weightwatcher, all (also those
    that take decompositions of their own, alpha_farms and ww_rand_distance), or none."""
    values_only: bool = option(False, identity="values_only", since="0.2")
    """Compute singular values and what follows from them, without vectors and the scale null: about half the time."""
    selection: Selection = field(default_factory=Selection)
    """Which matrices are scanned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values_only:
            self._without_vectors()
        try:
            _null(self.null)
        except ValueError as error:
            raise ConfigError("null", f"is {self.null!r}: {error}") from error
        try:
            # The names of single metrics: what a group stands for may grow, and the rows of a scan do not.
            object.__setattr__(self, "metrics", chosen(self.metrics))
        except ValueError as error:
            raise ConfigError("metrics", str(error)) from error

    def _without_vectors(self) -> None:
        """Drop what only vectors have, so that it is no part of the identity.

        Raises:
            ConfigError: it was asked for.
        """
        if self.head_mass:
            raise ConfigError("head_mass", "needs singular vectors: leave it out, or scan without `values_only`")
        if self.scale == "total":
            raise ConfigError(
                "scale", "is 'total', which needs singular vectors: leave it out, or scan without `values_only`"
            )
        if self.null != "table":
            raise ConfigError(
                "null", f"is {self.null!r}, a test of singular vectors: leave it out, or scan without `values_only`"
            )
        object.__setattr__(self, "scale", "none")

    def as_dict(self) -> dict[str, Any]:
        """Return the parameters as JSON types, in a fixed order; they are stored with every result."""
        from scanner.rmt.columns import extra_metrics

        metrics = () if self.values_only else extra_metrics()
        return {"version": vocabulary.METHOD_VERSION} | parameters(self) | ({"metrics": [*metrics]} if metrics else {})


def scan_id(identity: str, method: Method) -> str:
    """Return 16 hexadecimal digits that identify the scan of this content with this method, on every machine and in every run."""
    text = json.dumps({"content": identity, "method": method.as_dict()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def method_of(parsed: Mapping[str, Any]) -> Method | None:
    """Return the method with the parameters of a stored one; None if it has others than this version knows."""
    try:
        lists = {name: tuple(parsed[name]) for name in ("only", "layers")}
        products = parsed.get("products", False)
        selection = Selection(embeddings=parsed["embeddings"], heads=parsed["heads"], products=products, **lists)
        method = Method(
            sigma=parsed["sigma"],
            null=parsed["null"],
            scale=parsed.get(
                "scale", "none"
            ),  # a scan without a scale null has the parameters of scanners that knew none
            head_mass=parsed.get("head_mass", False),
            metrics=tuple(parsed.get("metric_set", ())),
            values_only=parsed.get("values_only", False),
            selection=selection,
        )
    except (ValueError, TypeError, KeyError, ScannerError):
        return None
    ours, theirs = method.as_dict(), dict(parsed)
    for one in (ours, theirs):
        one.pop("version", None)
        one.pop("metrics", None)  # those of the extensions that are installed now
    return method if json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True) else None
