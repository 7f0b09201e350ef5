"""Names of estimates and ensembles, and the version of the method, for modules that do not compute."""

from __future__ import annotations

from typing import Literal, get_args

SigmaKind = Literal["median", "std", "init", "bulk"]
SIGMA_KINDS: tuple[SigmaKind, ...] = get_args(SigmaKind)
"""Estimates of sigma, the standard deviation of one entry of the random part of a matrix; `scanner.rmt.sigma` computes them."""

Ensemble = Literal["gaussian", "kaiming_uniform"]
ENSEMBLES: tuple[Ensemble, ...] = get_args(Ensemble)
"""Distributions of random controls; `scanner.rmt.ensembles` draws from them."""

#: Increased when the same matrix would give different rows; part of the identity of every scan.
METHOD_VERSION = 1
