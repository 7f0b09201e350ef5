"""Names of estimates and ensembles, and the version of the method, for modules that do not compute."""

from __future__ import annotations

from typing import Literal, get_args

SigmaKind = Literal["median", "std", "init", "bulk"]
SIGMA_KINDS: tuple[SigmaKind, ...] = get_args(SigmaKind)
"""Estimates of sigma, the standard deviation of one entry of the random part of a matrix; `scanner.rmt.sigma` computes them."""

ScaleKind = Literal["robust", "total", "none"]
SCALE_KINDS: tuple[ScaleKind, ...] = get_args(ScaleKind)
"""Estimates of the row and column variances of the scale null, and `none`; `scanner.rmt.scale_null` computes them."""

Ensemble = Literal["gaussian", "kaiming_uniform", "permuted", "sign", "scale"]
ENSEMBLES: tuple[Ensemble, ...] = ("gaussian", "kaiming_uniform")
"""Distributions of random controls that depend on the shape of a matrix only; `scanner.rmt.ensembles` draws from them."""
MATRIX_ENSEMBLES: tuple[Ensemble, ...] = ("permuted", "sign", "scale")
"""Distributions of random controls that are made from a matrix; `scanner.rmt.ensembles` draws from them."""

#: Increased when the same matrix would give different rows; part of the identity of every scan.
METHOD_VERSION = 1
