"""Shared by the benchmarks: one BLAS thread per process, alternating runs, and tables on the screen and as JSON.

Import this module before numpy or torch: both read the number of threads when they are loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from threadpoolctl import threadpool_info

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
if {"numpy", "torch"} & set(sys.modules):
    raise RuntimeError("import measure before numpy and torch: they read the number of BLAS threads once")
os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))  # children (workers, plain processes) inherit it

_LIBRARIES = ("numpy", "scipy", "torch", "ray")

Result = TypeVar("Result")
Row = dict[str, object]


def options(name: str, description: str, *, repeats: int) -> argparse.ArgumentParser:
    """Return the command line of one benchmark: `--quick`, `--repeats`, `--json`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes, one run: shows that the script works")
    parser.add_argument(
        "--repeats", type=count, default=repeats, metavar="N", help="runs of each (default: %(default)s)"
    )
    beside = Path(__file__).with_name(f"{name}.json")
    parser.add_argument("--json", type=Path, default=beside, metavar="FILE", help="where the figures go (%(default)s)")
    return parser


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def seconds(call: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def alternate(contestants: Mapping[str, Callable[[], Result]], repeats: int) -> dict[str, list[Result]]:
    """Return the results of `repeats` rounds, run alternately (A B A B) so that other load affects all contestants alike."""
    results: dict[str, list[Result]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            results[name].append(run())
    return results


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def at_least(ratio: float, asked: float | None) -> Row:
    """Return the columns that compare a ratio with the required one; None: there is no requirement."""
    return {"ratio": ratio, "asked": f">= {asked:g}" if asked else "", "met": _yes_no(ratio >= asked) if asked else ""}


def at_most(ratio: float, asked: float | None) -> Row:
    """Like `at_least`, for ratios that must be small."""
    return {"ratio": ratio, "asked": f"<= {asked:g}" if asked else "", "met": _yes_no(ratio <= asked) if asked else ""}


def _yes_no(met: bool) -> str:
    return "yes" if met else "NO"


def table(title: str, rows: Sequence[Row]) -> None:
    """Print rows with the same columns, numbers aligned to the right."""
    names = list(rows[0])
    cells = [[_text(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    print(f"\n{title}")
    for line in (names, ["-" * width for width in widths], *cells):
        print(
            "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)).rstrip()
        )
    sys.stdout.flush()


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if value and not 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"
    return "" if value is None else str(value)


def machine() -> Row:
    """Print and return a description of the machine; call it after numpy and torch are loaded, so that it sees their threads.

    `load` is the load average of the last minute. If it is near the number of cores before the start, the figures are noisy.
    """
    found: Row = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": max((pool["num_threads"] for pool in threadpool_info()), default=None),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    } | {name: version(name) for name in _LIBRARIES}
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    if names.is_file():
        for line in names.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nwritten: {path}")
