"""Seconds of the analysis of one matrix with the scale null against the same analysis without it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import measure

import numpy as np  # isort: skip
from numpy.typing import NDArray

from scanner.rmt.analysis import Analysis, analyze
from scanner.rmt.vocabulary import ScaleKind

NAME = "scale_null"
#: Shapes, the ratio that is asked for, and how many runs there are for each `--repeats`.
SHAPES = [
    ((384, 384), 1.3, 5),
    ((1536, 384), 1.3, 3),
    ((768, 768), 1.3, 2),
    ((768, 3072), 1.3, 1),
    ((4096, 4096), 1.1, 0),
]
QUICK_SHAPES = [((96, 96), None, 1), ((64, 256), None, 1)]


def unequal(rows: int, cols: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return Gaussian entries with row and column variances over a factor of 30, and a few spikes."""
    a, b = (30.0 ** rng.uniform(-0.5, 0.5, size) for size in (rows, cols))
    w = np.sqrt(np.outer(a, b)) * rng.standard_normal((rows, cols))
    for strength in np.linspace(6.0, 2.0, 12):
        u, v = rng.standard_normal(rows), rng.standard_normal(cols)
        w += strength * (rows * cols) ** 0.25 * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    return w


def main() -> int:
    args = measure.options(NAME, __doc__, repeats=3).parse_args()
    machine = measure.machine()
    rng = np.random.default_rng(0)
    rows: list[measure.Row] = []
    for shape, asked, runs in QUICK_SHAPES if args.quick else SHAPES:
        w = unequal(*shape, rng)
        repeats = 1 if args.quick else max(1, runs * args.repeats)
        kinds: tuple[ScaleKind, ...] = ("none", "total", "robust")
        found: dict[str, Analysis] = {}

        def run(kind: ScaleKind, w: NDArray[np.float64] = w, found: dict[str, Analysis] = found) -> float:
            def call() -> None:
                found[kind] = analyze(w, scale=kind)

            return measure.seconds(call)

        if max(shape) < 4096:
            run("robust")  # loads what is loaded once
        calls: dict[str, Callable[[], float]] = {kind: partial(run, kind) for kind in kinds}
        times = {kind: measure.median(each) for kind, each in measure.alternate(calls, repeats).items()}
        rows += [
            {
                "shape": f"{shape[0]} x {shape[1]}",
                "scale": kind,
                "none_s": times["none"],
                "scale_s": times[kind],
                "above": found[kind].outliers_right_scale,
                "failure": found[kind].scale_failure or "",
            }
            | measure.at_most(times[kind] / times["none"], asked)
            for kind in kinds[1:]
        ]
    measure.table("Analysis of one matrix, seconds, median, one thread", rows)
    measure.write_json(args.json, {"quick": args.quick, "machine": machine, "times": rows})
    return int(any(row["failure"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
