"""Regimes of learning: what distinguishes the networks of `lazy_learning`, and how all of them are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HIDDEN = (512, 512, 512)
Ordering = Literal["smallest", "mass", "random"]
ORDERINGS: tuple[Ordering, ...] = ("smallest", "mass", "random")
"""Which singular values of each hidden matrix go, for a share p: the smallest p of their number; the smallest that together have
at most p of the sum of all; as many as `smallest`, drawn at random (the control)."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What distinguishes the networks that are compared."""

    alpha: float = 1.0
    """Scale of the logits: 1 is rich, 15 lazy."""
    frozen: tuple[int, ...] = ()
    """Layers that stay as they were initialised; 0 is the one that sees the images."""

    @property
    def name(self) -> str:
        """`alpha=15`, `alpha=1 frozen=0,1,2`."""
        layers = ",".join(map(str, self.frozen))
        return f"alpha={self.alpha:g}" + (f" frozen={layers}" if layers else "")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Plain stochastic gradient descent, no momentum, no decay: the same for every regime."""

    epochs: int = 60
    batch: int = 64
    rate: float = 0.05
