"""What a device does in float64: units of `decomposition_cost` per second, measured by decompositions that take under a second."""

from __future__ import annotations

import time

from scanner.engine.plan import decomposition_cost

#: Sizes of the matrices, until one takes so many seconds: small matrices do not show what a GPU can do, and large ones take too
#: long on a core.
_SIZES, _ENOUGH_SECONDS = (256, 512, 1024, 2048), 0.12


def measured_rate(device: str) -> float:
    """Return the units of cost per second that a device (`cpu` or `cuda`) does; 0.0 if it cannot decompose a matrix in float64.

    On a CPU, the number of BLAS threads is that of the caller.
    """
    import numpy as np
    import torch

    from scanner.rmt.decomposition import decompose  # the driver has this module, too, and needs no torch

    rate = 0.0
    for size in _SIZES:
        # On the device from the start: reading overlaps with computing.
        noise = torch.from_numpy(np.random.default_rng(size).standard_normal((size, size)))
        try:
            matrix = noise.to(device)
            if size == _SIZES[0]:
                float(decompose(matrix).residual)  # the first call loads libraries
            started = time.perf_counter()
            decompose(matrix)  # its residual is a number of Python, so it has waited for the device
            taken = time.perf_counter() - started
        except (RuntimeError, ArithmeticError):  # of torch: a device without memory, or that it cannot use
            return 0.0
        rate = decomposition_cost(size, size) / taken
        if taken >= _ENOUGH_SECONDS:
            break
    return rate
