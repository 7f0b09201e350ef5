"""Names of estimates and ensembles, for modules that do not compute."""

from __future__ import annotations

from typing import Literal, get_args

SigmaKind = Literal["median", "std", "init", "bulk"]
SIGMA_KINDS: tuple[SigmaKind, ...] = get_args(SigmaKind)
"""Estimates of sigma, the standard deviation of one entry of the random part of a matrix; `scanner.rmt.sigma` computes them."""

ScaleKind = Literal["robust", "total", "none"]
SCALE_KINDS: tuple[ScaleKind, ...] = get_args(ScaleKind)
"""Estimates of the row and column variances of the scale null, and `none`; `scanner.rmt.scale_null` computes them."""

Ensemble = Literal["gaussian", "kaiming_uniform"]
ENSEMBLES: tuple[Ensemble, ...] = get_args(Ensemble)
"""Distributions of random controls; `scanner.rmt.ensembles` draws from them."""
