"""Seconds of the analysis of one matrix with all default metrics against the same analysis without them.

They are seconds of the processor in one thread, so that other programs disturb them less. `noise` is the slowest case, because the
p-value of its largest singular value is not 0 at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import measure

import numpy as np  # isort: skip
import spectra
from numpy.typing import NDArray

from scanner.rmt.analysis import Analysis, analyze
from scanner.rmt.metric_set import chosen, metric_named

NAME = "metrics"
#: Shapes, and how many runs there are for each `--repeats`.
SHAPES = [((384, 384), 15), ((1536, 384), 9), ((768, 768), 5), ((768, 3072), 3), ((2048, 2048), 1), ((4096, 4096), 0)]
QUICK_SHAPES = [((96, 96), 1), ((64, 256), 1)]
KINDS = ("spikes", "noise")
#: Larger matrices have spikes only: the metrics take less than 1 % of their time.
LARGEST_NOISE = 1024
ASKED = 1.15


def main() -> int:
    args = measure.options(NAME, __doc__, repeats=3).parse_args()
    machine = measure.machine()
    rng = np.random.default_rng(0)
    rows: list[measure.Row] = []
    each: list[measure.Row] = []
    cases = [(shape, runs, kind) for shape, runs in (QUICK_SHAPES if args.quick else SHAPES) for kind in KINDS]
    for shape, runs, entries in cases:
        if entries == "noise" and max(shape) > LARGEST_NOISE:
            continue
        w = spectra.spiked(*shape, rng, spikes=8 if entries == "spikes" else 0)
        repeats = 1 if args.quick else max(1, runs * args.repeats)
        found: dict[str, Analysis] = {}

        def run(*metrics: str, w: NDArray[np.float64] = w, found: dict[str, Analysis] = found) -> float:
            def call() -> None:
                found[metrics[0]] = analyze(w, metrics=metrics)

            started = time.process_time()
            call()
            return time.process_time() - started

        if max(shape) < 4096:
            run("default")  # loads what is loaded once
        calls: dict[str, Callable[[], float]] = {kind: partial(run, kind) for kind in ("none", "default")}
        times = {kind: measure.median(seconds) for kind, seconds in measure.alternate(calls, repeats).items()}
        rows.append(
            {
                "shape": f"{shape[0]} x {shape[1]}",
                "entries": entries,
                "none_s": times["none"],
                "metrics_s": times["default"],
                "failure": found["default"].metrics["metrics_failure"] or "",
            }
            | measure.at_most(times["default"] / times["none"], ASKED)
        )
        alone = milliseconds(found["none"], repeats)
        whole = sum(alone.values())
        share = whole / 1e3 / times["none"]
        each.append({"shape": f"{shape[0]} x {shape[1]}", "entries": entries, **alone, "all": whole, "share": share})
    measure.table("Analysis of one matrix, seconds of the processor, median, one thread", rows)
    measure.table("Milliseconds of each metric by itself, median; share of all in the analysis without them", each)
    measure.write_json(args.json, {"quick": args.quick, "machine": machine, "times": rows, "each": each})
    return int(any(row["failure"] for row in rows))


def milliseconds(found: Analysis, repeats: int) -> dict[str, float]:
    """Return how long each metric takes, from the singular values of an analysis."""
    from scanner.rmt.spectrum import Spectrum, compute

    s = found.singular_values
    spectrum = Spectrum(
        singular_values=s,
        unit=1.0,
        rows=found.rows,
        cols=found.cols,
        rank=found.rank,
        triplets=len(s),
        sigma=found.sigma,
        lower=found.mp_lower,
        upper=found.mp_upper,
        independent=True,
        entries=lambda: np.empty((0, 0)),
    )
    calls = {name: partial(measure.seconds, partial(compute, [name], spectrum)) for name in chosen(["default"])}
    assert all(metric_named(name).groups for name in calls)
    return {name: 1e3 * measure.median(times) for name, times in measure.alternate(calls, max(3, repeats)).items()}


if __name__ == "__main__":
    sys.exit(main())
