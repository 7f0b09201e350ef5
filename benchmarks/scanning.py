"""A scan and the bare loop, run and timed the same way, with start-up and steady state separated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from scanner.engine import ModelReport, PoolOptions, ScanObserver
from scanner.engine.scan import scan

_BARE_LOOP = Path(__file__).with_name("bare_loop.py")


@dataclass(frozen=True, kw_only=True)
class Run:
    """`start_up`: until the first matrix can be dispatched. `steady`: from then until all results are stored."""

    matrices: int
    start_up: float
    steady: float


class Clock(ScanObserver):
    """Records when a scan of one checkpoint starts Ray, dispatches its first matrix, and has committed."""

    def __init__(self) -> None:
        self.starting_at = self.dispatching_at = self.committed_at = 0.0

    def starting(self, *_: object) -> None:
        self.starting_at = time.perf_counter()

    def dispatching(self) -> None:
        self.dispatching_at = time.perf_counter()

    def model_done(self, model: ModelReport) -> None:
        self.committed_at = time.perf_counter()


def run_scan(checkpoint: Path, store: Path, *, workers: int, clock: Clock | None = None) -> Run:
    """Scan into a new store on a local Ray, without random controls."""
    clock = clock or Clock()
    pool = PoolOptions(address="local", workers=workers, gpus_per_worker=0)
    report = scan(checkpoint, store=store, ensembles=(), pool=pool, observer=clock)
    (model,) = report.models
    if model.error is not None or model.failed:
        raise RuntimeError(f"the scan of {checkpoint.name} failed: {model.error or f'{model.failed} matrices'}")
    return Run(
        matrices=model.analyzed,
        start_up=clock.dispatching_at - clock.starting_at,
        steady=clock.committed_at - clock.dispatching_at,
    )


def run_bare_loop(checkpoint: Path, output: Path, *, processes: int) -> Run:
    """Process the same matrices in the same number of plain processes."""
    command = [sys.executable, os.fspath(_BARE_LOOP), os.fspath(checkpoint), "--processes", str(processes)]
    launched = time.time()
    done = subprocess.run([*command, "--output", os.fspath(output)], check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    return Run(matrices=found["matrices"], start_up=found["ready_at"] - launched, steady=found["seconds"])
