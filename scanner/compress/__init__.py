"""Compression by what was measured: a checkpoint in which every matrix has the low rank that a budget of parameters allows.

`compress(config)` writes the checkpoint, `load(folder)` opens one whose matrices are kept as two factors. Checkpoints with merged
factors are ordinary ones, which transformers loads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scanner.compress.config import Config

if TYPE_CHECKING:
    from scanner.compress.run import Compression

__all__ = ["Config", "compress", "load"]


def compress(config: Config, *, tell: Callable[[str], None] = lambda _: None) -> Compression:
    """Write a compressed checkpoint, and measure it beside other ways to reach the same size.

    Args:
        config: the model, the budget, the rule, and where to write.
        tell: called with a line of text when a stage begins.

    Raises:
        ScannerError: the model, the text or the output is not suitable; the message says why.
    """
    from scanner.compress.run import compress

    return compress(config, tell=tell)


def load(folder: str | os.PathLike[str], *, device: str = "cpu") -> Any:
    """Return the model that `rmtscan compress --factored` wrote into a folder, ready for forward passes.

    Its class is the one that the configuration names, and each compressed linear layer is a `FactoredLinear`: two linear layers
    after one another. Nothing from the folder is executed.

    Args:
        folder: the folder.
        device: where the model is put, such as `cpu` or `cuda`.

    Raises:
        ScannerError: the folder has no factored checkpoint, or its files contradict each other.
    """
    from scanner.compress.factored import load

    return load(folder, device=device)
