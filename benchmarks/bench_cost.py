"""The cost model against measured seconds: the analysis of one matrix of every shape, on one core whose rate is measured here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import measure

import numpy as np  # isort: skip
import torch

from scanner.engine.plan import expected_seconds
from scanner.engine.rate import measured_rate
from scanner.rmt.analysis import analyze

NAME = "cost"
Shape = tuple[int, int]
QUICK: tuple[Shape, ...] = ((64, 64), (64, 256), (128, 128), (256, 256), (128, 512), (512, 256), (512, 512))
SHAPES: tuple[Shape, ...] = (
    *QUICK,
    *((512, 2048), (1024, 1024), (3072, 768), (1024, 4096), (2048, 2048), (4096, 2048), (4096, 4096)),
)
#: Largest median of the relative errors.
WORST_ERROR = 0.30
#: From this size on, a matrix is measured once.
_LARGE = 2048


def analyzed(shape: Shape) -> float:
    """Return the seconds of the analysis of a matrix of noise in float32, without drawing it."""
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    return measure.seconds(lambda: analyze(matrix))


def compared(shapes: Sequence[Shape], repeats: int) -> Iterator[measure.Row]:
    """Yield predicted and measured seconds. The rate is measured before every shape, because that of a shared machine changes."""
    analyzed((64, 64))  # loads libraries
    for shape in shapes:
        rates, taken = [], []
        for _ in range(1 if min(shape) >= _LARGE else repeats):
            rates.append(measured_rate("cpu"))
            taken.append(analyzed(shape))
        rate, seconds = measure.median(rates), measure.median(taken)
        predicted = expected_seconds(*shape, rate)
        yield {
            "shape": f"{shape[0]}x{shape[1]}",
            "units_per_s": rate,
            "predicted_s": predicted,
            "measured_s": seconds,
            "ratio": predicted / seconds,
        }


def main() -> int:
    args = measure.options(NAME, __doc__, repeats=3).parse_args()
    machine = measure.machine()
    rows = list(compared(QUICK if args.quick else SHAPES, args.repeats))
    measure.table("Seconds of one matrix on one core", rows)
    error = measure.median([abs(float(str(row["ratio"])) - 1) for row in rows])
    print(f"\nmedian error {error:.0%}, asked: <= {WORST_ERROR:.0%}: {'met' if error <= WORST_ERROR else 'NOT met'}")
    measure.write_json(
        args.json, {"quick": args.quick, "machine": machine, "rows": rows, "median_error": error, "asked": WORST_ERROR}
    )
    return int(error > WORST_ERROR and not args.quick)


if __name__ == "__main__":
    sys.exit(main())
