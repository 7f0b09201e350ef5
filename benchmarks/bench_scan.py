"""A whole scan against a bare loop over the same matrices in the same number of plain processes, and the start-up of both."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import measure

import numpy as np  # isort: skip
from checkpoints import LLAMA, QUICK_LLAMA, write_llama
from scanning import Run, run_bare_loop, run_scan

from scanner import open_store

NAME = "scan"
ASKED = 1.25
# Both must do the same work, or the ratio is meaningless.
WORST_VALUE, WORST_DISTANCE = 1e-6, 1e-6


def differences(store: Path, bare: Path) -> list[measure.Row]:
    """Return the largest differences of singular values and of D between the two, over all matrices."""
    rows = open_store(str(store)).sql("SELECT tensor, singular_value, u_ks, v_ks FROM vectors ORDER BY tensor, k")
    tensors = np.array(rows["tensor"].to_pylist())
    ours = {name: rows[name].to_numpy() for name in ("singular_value", "u_ks", "v_ks")}
    value = distance = 0.0
    with np.load(bare) as other:
        for tensor in dict.fromkeys(tensors.tolist()):
            mine = tensors == tensor
            s = other[f"singular_values/{tensor}"]
            value = max(value, float(np.max(np.abs(ours["singular_value"][mine] - s) / s)))
            for side in ("u_ks", "v_ks"):
                distance = max(distance, float(np.max(np.abs(ours[side][mine] - other[f"{side}/{tensor}"]))))
        matrices = len(other.files) // 3
    if matrices != len(set(tensors.tolist())):
        raise RuntimeError(f"the bare loop did {matrices} matrices, the scan {len(set(tensors.tolist()))}")
    return [
        _difference("singular value, relative", matrices, value, WORST_VALUE),
        _difference("D", matrices, distance, WORST_DISTANCE),
    ]


def _difference(quantity: str, matrices: int, worst: float, allowed: float) -> measure.Row:
    return {
        "quantity": quantity,
        "matrices": matrices,
        "difference": worst,
        "asked": f"<= {allowed:g}",
        "met": "yes" if worst <= allowed else "NO",
    }


def main() -> int:
    parser = measure.options(NAME, __doc__, repeats=5)
    parser.add_argument(
        "--workers", type=measure.count, default=2, metavar="N", help="workers, and plain processes (%(default)s)"
    )
    args = parser.parse_args()
    machine = measure.machine()
    repeats = 1 if args.quick else args.repeats
    with tempfile.TemporaryDirectory(prefix="rmtscan-bench-") as temporary:
        folder = Path(temporary)
        checkpoint = write_llama(folder / "llama", QUICK_LLAMA if args.quick else LLAMA)
        count = iter(range(repeats))
        runs = measure.alternate(
            {
                "scan": lambda: run_scan(checkpoint, folder / f"store-{next(count)}", workers=args.workers),
                "bare loop": lambda: run_bare_loop(checkpoint, folder / "bare.npz", processes=args.workers),
            },
            repeats,
        )
        same = differences(folder / "store-0", folder / "bare.npz")
    rows = [_row(name, of_one) for name, of_one in runs.items()]
    measure.table(
        f"{rows[0]['matrices']} matrices, {args.workers} workers and as many plain processes, no random controls; "
        f"seconds, median of {repeats}",
        rows,
    )
    ratio = measure.median([run.steady for run in runs["scan"]]) / measure.median(
        [run.steady for run in runs["bare loop"]]
    )
    ratios: list[measure.Row] = [
        {"ratio of": "steady state, scan / bare loop"} | measure.at_most(ratio, None if args.quick else ASKED)
    ]
    measure.table("From the first dispatch to the commit", ratios)
    measure.table("Both computed the same: largest difference", same)
    content = {"quick": args.quick, "machine": machine, "workers": args.workers, "times": rows}
    measure.write_json(args.json, content | {"ratios": ratios, "differences": same})
    return int(any(row["met"] == "NO" for row in same))


def _row(name: str, runs: list[Run]) -> measure.Row:
    steady = [run.steady for run in runs]
    return {
        "run": name,
        "matrices": runs[0].matrices,
        "start_up_s": measure.median([run.start_up for run in runs]),
        "steady_s": measure.median(steady),
        "steady_min_s": min(steady),
        "steady_max_s": max(steady),
    }


if __name__ == "__main__":
    sys.exit(main())
