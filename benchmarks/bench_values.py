"""Seconds of the analysis of one matrix without vectors (`--values-only`) against the whole one, and the error of its values."""

from __future__ import annotations

import sys
from functools import partial

import measure

import numpy as np  # isort: skip
from numpy.typing import NDArray

from scanner.rmt.analysis import Analysis, analyze

NAME = "values"
#: Shapes, the ratio that is asked for, and how many runs there are for each `--repeats`.
SHAPES = [
    ((384, 384), 0.5, 5),
    ((768, 768), 0.5, 3),
    ((768, 3072), 0.5, 1),
    ((2048, 2048), 0.5, 1),
    ((4096, 4096), 0.5, 0),
]
QUICK_SHAPES = [((96, 96), None, 1), ((64, 256), None, 1)]


def trained(rows: int, cols: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise with a few strong spikes, so that the largest value is far above the bulk, as in trained models."""
    w = rng.standard_normal((rows, cols))
    for strength in np.linspace(8.0, 2.0, 12):
        u, v = rng.standard_normal(rows), rng.standard_normal(cols)
        w += strength * (rows * cols) ** 0.25 * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    return w


def main() -> int:
    args = measure.options(NAME, __doc__, repeats=3).parse_args()
    machine = measure.machine()
    rng = np.random.default_rng(0)
    rows: list[measure.Row] = []
    for shape, asked, runs in QUICK_SHAPES if args.quick else SHAPES:
        w = trained(*shape, rng)
        repeats = 1 if args.quick else max(1, runs * args.repeats)
        found: dict[bool, Analysis] = {}

        def run(alone: bool, w: NDArray[np.float64] = w, found: dict[bool, Analysis] = found) -> float:
            def call() -> None:
                found[alone] = analyze(w, values_only=alone)

            return measure.seconds(call)

        run(True)  # loads what is loaded once
        times = {
            name: measure.median(each)
            for name, each in measure.alternate(
                {"whole": partial(run, False), "values": partial(run, True)}, repeats
            ).items()
        }
        truth = found[False].singular_values
        rows.append(
            {
                "shape": f"{shape[0]} x {shape[1]}",
                "whole_s": times["whole"],
                "values_s": times["values"],
                "largest_difference": float(np.max(np.abs(found[True].singular_values / truth - 1.0))),
            }
            | measure.at_most(times["values"] / times["whole"], asked)
        )
    measure.table("Analysis of one matrix, seconds, median, one thread", rows)
    measure.write_json(args.json, {"quick": args.quick, "machine": machine, "times": rows})
    return int(any(row["largest_difference"] > 1e-9 for row in rows))  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())
