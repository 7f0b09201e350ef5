"""Parameters of the networks of `lazy_learning`: the regimes, the training, and the orderings of removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HIDDEN = (512, 512, 512)
"""Widths of the hidden layers, unless others are asked for."""
Normalize = Literal["pixels", "images"]
"""How images are centered and scaled. `pixels`: every pixel minus its mean over the training images, and all divided by one
standard deviation; `images`: every image to mean 0 and variance 1 over its own values."""
Ordering = Literal["smallest", "mass", "random"]
ORDERINGS: tuple[Ordering, ...] = ("smallest", "mass", "random")
"""Singular values that are removed from each hidden matrix for a share p. `smallest`: the smallest, a share p of their number;
`mass`: the smallest, up to a share p of the sum of all values; `random`: as many as `smallest`, drawn at random (the control)."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Parameters in which the compared networks differ."""

    alpha: float = 1.0
    """Scale of the logits: 1 is the rich regime, 15 the lazy one."""
    frozen: tuple[int, ...] = ()
    """Layers that are not trained; 0 is the first."""

    @property
    def name(self) -> str:
        """The regime as text, for example `alpha=15` or `alpha=1 frozen=0,1,2`."""
        layers = ",".join(map(str, self.frozen))
        return f"alpha={self.alpha:g}" + (f" frozen={layers}" if layers else "")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Stochastic gradient descent without momentum or weight decay, the same for every regime."""

    epochs: int = 60
    batch: int = 64
    rate: float = 0.05
