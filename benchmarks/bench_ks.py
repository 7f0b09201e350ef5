"""The Kolmogorov-Smirnov distances of all singular vectors of one matrix against a loop over `scipy.stats.kstest`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import measure

import numpy as np  # isort: skip
import scipy.special
import scipy.stats
import torch
from numpy.typing import NDArray
from spectra import Matrix, spiked

from scanner.rmt.decomposition import decompose
from scanner.rmt.entries import entry_statistics

NAME = "ks"
SIZE, QUICK_SIZE = 2048, 256
# The loop is slow: it runs on this many vectors of each side, and its time is scaled to all of them.
SAMPLED, QUICK_SAMPLED = 256, 100
ASKED = 10.0
WORST_DIFFERENCE = 1e-6


def loop(vectors: Matrix) -> NDArray[np.float64]:
    """Return D, one vector (row) at a time."""
    return np.array([scipy.stats.kstest(x * np.sqrt(len(x)), "norm").statistic for x in vectors])


def plain_numpy(vectors: Matrix) -> NDArray[np.float64]:
    """Return D of all vectors at once in float64, as the formula reads; there is no requirement for this contestant."""
    length = vectors.shape[1]
    c = scipy.special.ndtr(np.sort(vectors, axis=1) * np.sqrt(length))
    i = np.arange(1, length + 1)
    distances: NDArray[np.float64] = np.maximum(np.max(i / length - c, axis=1), np.max(c - (i - 1) / length, axis=1))
    return distances


def main() -> int:
    args = measure.options(NAME, __doc__, repeats=5).parse_args()
    machine = measure.machine()
    repeats = 1 if args.quick else args.repeats
    size, sampled = (QUICK_SIZE, QUICK_SAMPLED) if args.quick else (SIZE, SAMPLED)
    found = decompose(torch.from_numpy(spiked(size, size, np.random.default_rng(0))))
    sides = [found.left, found.right]
    arrays = [side.numpy() for side in sides]
    some = [array[:: size // sampled][:sampled] for array in arrays]  # largest, smallest and all between
    contestants: dict[str, Callable[[], object]] = {
        "entry_statistics": lambda: [entry_statistics(side) for side in sides],
        "scipy.stats.kstest loop": lambda: [loop(array) for array in some],
        "numpy float64, no blocks": lambda: [plain_numpy(array) for array in arrays],
    }
    contestants["entry_statistics"]()
    timed = {name: (lambda run=run: measure.seconds(run)) for name, run in contestants.items()}
    times = {name: measure.median(each) for name, each in measure.alternate(timed, repeats).items()}
    times["scipy.stats.kstest loop"] *= size / sampled
    ours = times.pop("entry_statistics")
    rows: list[measure.Row] = [
        {"against": name, "vectors": 2 * size, "length": size, "entry_statistics_s": ours, "other_s": other}
        | measure.at_least(other / ours, None if args.quick or name.startswith("numpy") else ASKED)
        for name, other in times.items()
    ]
    measure.table(
        f"D of all left and right vectors, seconds, median of {repeats}, one thread; "
        f"the kstest loop is measured on {2 * sampled} vectors and scaled to {2 * size}",
        rows,
    )
    every, kstest = np.concatenate([plain_numpy(a) for a in arrays]), np.concatenate([loop(part) for part in some])
    ks = [entry_statistics(side).ks.numpy() for side in sides]
    same = np.concatenate([d[:: size // sampled][:sampled] for d in ks])
    differences: list[measure.Row] = [
        _difference("scipy.stats.kstest", same, kstest),
        _difference("numpy float64", np.concatenate(ks), every),
    ]
    measure.table("Largest difference of D", differences)
    measure.write_json(args.json, {"quick": args.quick, "machine": machine, "times": rows, "differences": differences})
    return int(any(row["met"] == "NO" for row in differences))


def _difference(against: str, ours: NDArray[np.float32], other: NDArray[np.float64]) -> measure.Row:
    worst = float(np.max(np.abs(ours.astype(np.float64) - other)))
    return {
        "against": against,
        "vectors": len(other),
        "difference": worst,
        "asked": f"<= {WORST_DIFFERENCE:g}",
        "met": "yes" if worst <= WORST_DIFFERENCE else "NO",
    }


if __name__ == "__main__":
    sys.exit(main())
