"""One worker against two on the same checkpoint, and the memory that a worker needs for large matrices."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import measure
from checkpoints import LLAMA, QUICK_LLAMA, write_llama, write_matrices
from scanning import Clock, Run, run_bare_loop, run_scan

from scanner.engine import PoolOptions
from scanner.engine.session import ray_session

NAME = "scaling"
ASKED = 1.8
# Every size occurs twice: a worker reads its next matrix while it computes the current one, and both count.
LARGE = [(4096, 4096), (4096, 4096), (2048, 8192), (8192, 2048)]
QUICK_LARGE = [(512, 512), (512, 512), (256, 1024), (1024, 256)]
ALLOWED_MATRICES, ALLOWED_BYTES = 4, 600e6


class Memory(Clock):
    """Records the largest resident set of any worker, in bytes, whenever a result arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.baseline = self.peak = 0

    def dispatching(self) -> None:
        super().dispatching()
        self.baseline = worker_peak()

    def task_done(self, *_: object, **__: object) -> None:
        self.peak = max(self.peak, worker_peak())


def worker_peak() -> int:
    """Return the largest VmHWM of the Ray workers of this process, in bytes; 0 if there are none."""
    return max((_status(process).get("VmHWM", 0) * 1024 for process in _worker_processes()), default=0)


def _worker_processes() -> list[Path]:
    """Return the folders in /proc of the descendants of this process that hold a `Worker` actor."""
    processes = [folder for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    parents = {int(folder.name): _status(folder).get("PPid", 0) for folder in processes}
    us = int(Path("/proc/self").readlink().name)
    return [f for f in processes if _command(f).startswith("ray::Worker") and us in _ancestors(int(f.name), parents)]


def _ancestors(process: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while (process := parents.get(process, 0)) and process not in found:
        found.add(process)
    return found


def _status(process: Path) -> dict[str, int]:
    """Return the numbers in /proc/PID/status (sizes in kB), or nothing if the process has ended."""
    try:
        lines = (process / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) for name, _, value in fields if name in ("PPid", "VmHWM")}


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def measure_speed(folder: Path, *, quick: bool, repeats: int) -> tuple[list[measure.Row], list[measure.Row]]:
    """Return the steady state of one and two workers; one and two processes of the bare loop show the limit of the machine."""
    checkpoint = write_llama(folder / "llama", QUICK_LLAMA if quick else LLAMA)
    stores = (folder / f"store-{number}" for number in range(2 * repeats))
    runs = measure.alternate(
        {
            "scan, 1 worker": lambda: run_scan(checkpoint, next(stores), workers=1),
            "scan, 2 workers": lambda: run_scan(checkpoint, next(stores), workers=2),
            "bare loop, 1 process": lambda: run_bare_loop(checkpoint, folder / "bare.npz", processes=1),
            "bare loop, 2 processes": lambda: run_bare_loop(checkpoint, folder / "bare.npz", processes=2),
        },
        repeats,
    )
    rows = [_row(name, of_one) for name, of_one in runs.items()]
    one, two, bare_one, bare_two = (measure.median([run.steady for run in of_one]) for of_one in runs.values())
    ratios: list[measure.Row] = [
        {"ratio of": "scan, 1 worker / 2 workers"} | measure.at_least(one / two, None if quick else ASKED),
        {"ratio of": "bare loop, 1 process / 2 processes"} | measure.at_least(bare_one / bare_two, None),
    ]
    return rows, ratios


def _row(name: str, runs: list[Run]) -> measure.Row:
    steady = [run.steady for run in runs]
    return {
        "run": name,
        "matrices": runs[0].matrices,
        "steady_s": measure.median(steady),
        "steady_min_s": min(steady),
        "steady_max_s": max(steady),
    }


def measure_memory(folder: Path, *, quick: bool) -> measure.Row:
    shapes = QUICK_LARGE if quick else LARGE
    memory = Memory()
    run_scan(write_matrices(folder / "large", shapes), folder / "store-large", workers=1, clock=memory)
    if memory.peak == 0:
        raise RuntimeError("no worker process was found: /proc is needed to measure memory")
    largest = max(8 * rows * cols for rows, cols in shapes)
    allowed = ALLOWED_MATRICES * largest + ALLOWED_BYTES
    return {
        "matrices": ", ".join(f"{rows}x{cols}" for rows, cols in shapes),
        "largest_float64_MB": largest / 1e6,
        "at_start_MB": memory.baseline / 1e6,
        "peak_MB": memory.peak / 1e6,
        "asked": f"<= {allowed / 1e6:.0f}",
        "met": "yes" if memory.peak <= allowed else "NO",
    }


def main() -> int:
    args = measure.options(NAME, __doc__, repeats=3).parse_args()
    machine = measure.machine()
    repeats = 1 if args.quick else args.repeats
    # One Ray for all scans: only the steady state is compared, and starting Ray takes longer than some scans.
    session = ray_session(PoolOptions(address="local"))
    with session, tempfile.TemporaryDirectory(prefix="rmtscan-bench-") as folder:
        times, ratios = measure_speed(Path(folder), quick=args.quick, repeats=repeats)
        measure.table(f"From the first dispatch to the commit, seconds, median of {repeats}", times)
        measure.table("One beside two", ratios)
        memory = measure_memory(Path(folder), quick=args.quick)
        measure.table("Peak resident memory of a worker that does these matrices one after another", [memory])
    content = {"quick": args.quick, "machine": machine, "times": times, "ratios": ratios, "memory": memory}
    measure.write_json(args.json, content)
    return int(memory["met"] == "NO")


if __name__ == "__main__":
    sys.exit(main())
