"""Lazy learning on Ray: one task trains one network of one regime and measures what it is worth without singular values.

A point, one (regime, seed), is written as soon as it is there: its rows in table `ablations`, then its run in `experiments`. The
name of both is a hash of the pictures and of everything that decides the rows, so no point is computed twice.
In `ablations`: `model` is the network and its regime, `roles` is `hidden` (all three hidden matrices at once), `set` is
`smallest:20%`, `mass:20%` or `random:20%`, `metric` is `accuracy`, `stderr` is that of `delta`.

Source: Staats, Thamm, Rosenow, arXiv 2410.17770v1, App. A, Fig. 9.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
import torch

from scanner.engine.pool import PoolOptions, granted_device, run_tasks
from scanner.engine.scan import ScanObserver
from scanner.errors import ScannerError
from scanner.experiments.mlp import HIDDEN, ORDERINGS, DivergedError, Regime, Removal, Training, removals, train
from scanner.experiments.pictures import Pictures, load_pictures
from scanner.store import Store, open_store
from scanner.store.schemas import SCHEMAS, to_json
from scanner.version import __version__

KIND = "lazy_learning"
REGIMES = (Regime(alpha=1.0), Regime(alpha=15.0), Regime(alpha=1.0, frozen=(0, 1, 2)))
"""Rich, lazy, and the extreme of lazy: random hidden layers that are not trained at all."""
SHARES = tuple(i / 20 for i in range(1, 20))
#: Raised whenever the same parameters would give other rows.
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Point:
    """One network: what it is trained on, how, and what is taken from it. Small and picklable: a task."""

    data: str | None
    """Where the pictures are, on every machine; None: scikit-learn's digits."""
    digest: str
    """SHA-256 of the pictures and labels that the driver saw."""
    dataset: str
    sizes: tuple[int, ...]
    regime: Regime
    training: Training
    shares: tuple[float, ...]
    seed: int

    @property
    def method(self) -> dict[str, object]:
        """Everything that decides the rows; the place of the pictures does not."""
        decides = {name: value for name, value in asdict(self).items() if name != "data"}
        return {"experiment": KIND, "version": VERSION, **decides}

    @property
    def run_id(self) -> str:
        """16 hexadecimal digits that name the point."""
        return hashlib.sha256(to_json(self.method).encode()).hexdigest()[:16]

    @property
    def model(self) -> str:
        """`mlp 64-512-512-512-10 alpha=15`."""
        return f"mlp {'-'.join(map(str, self.sizes))} {self.regime.name}"

    @property
    def name(self) -> str:
        """Unique within a run."""
        return f"{self.run_id} ({self.regime.name}, seed {self.seed})"

    @property
    def cost(self) -> float:
        """Passes over the pictures."""
        return float(self.training.epochs)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a point: the accuracy of the intact network and of it without each set, or why there is none."""

    baseline: float = 0.0
    removals: tuple[Removal, ...] = ()
    examples: int = 0
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class LazyReport:
    """What became of the points of one command."""

    store: str
    run_ids: tuple[str, ...]
    """Of every point that is in the store now, computed or kept."""
    kept: int
    """Points that were there before."""
    failed: tuple[str, ...]
    """Name and reason of every point that is missing."""


class Worker:
    """One core or GPU that trains one network at a time; errors of a training come back as data."""

    def __init__(self) -> None:
        self._device = granted_device()
        self._computing = threading.Lock()

    def ready(self) -> str:
        """The device, once the worker is there."""
        return self._device

    def run(self, point: Point) -> Outcome:
        """Train and measure one point."""
        with self._computing:
            return compute(point, self._device)


def compute(point: Point, device: str = "cpu") -> Outcome:
    """Train and measure one point; what goes wrong is in the outcome."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    try:
        pictures = _pictures(point.data)
        if digest(pictures) != point.digest:
            return Outcome(
                error="the pictures are others than the driver's: the files must be the same on every machine"
            )
        network = train(pictures, point.regime, point.training, point.seed, device)
        baseline, found = removals(network, pictures, point.shares, point.seed)
    except (ScannerError, DivergedError, torch.OutOfMemoryError) as error:
        return Outcome(error=str(error))
    return Outcome(
        baseline=baseline,
        removals=tuple(found),
        examples=len(pictures.test_labels),
        seconds=time.perf_counter() - started,
    )


@lru_cache(maxsize=1)
def _pictures(data: str | None) -> Pictures:
    return load_pictures(data)


def digest(pictures: Pictures) -> str:
    """16 hexadecimal digits of the SHA-256 of pictures and labels."""
    content = hashlib.sha256()
    for array in (pictures.train, pictures.train_labels, pictures.test, pictures.test_labels):
        content.update(repr((array.shape, array.dtype.str)).encode())
        content.update(array.tobytes())
    return content.hexdigest()[:16]


def lazy_learning(
    *,
    store: str = "results",
    data: str | None = None,
    regimes: Sequence[Regime] = REGIMES,
    seeds: int = 3,
    training: Training | None = None,
    shares: Sequence[float] = SHARES,
    pool: PoolOptions | None = None,
    observer: ScanObserver | None = None,
    force: bool = False,
) -> LazyReport:
    """Train a network in every regime with every seed, and measure its accuracy without sets of singular values.

    Args:
        store: where the rows go; made if it is not there.
        data: pictures as `load_pictures` takes them; None: scikit-learn's digits.
        regimes: what is compared.
        seeds: how many networks of each: seeds 0, 1, ...
        training: the same for all; None: the defaults of `Training`.
        shares: what is removed, in (0, 1).
        pool: where and on how many workers.
        observer: told of progress.
        force: compute again what the store already holds.

    Raises:
        ScannerError: pictures that cannot be read, an impossible parameter, no worker, or a store that cannot be written.
    """
    training, observer = training or Training(), observer or ScanObserver()
    _check(regimes, seeds, training, shares)
    target = open_store(store, create=True)
    pictures = load_pictures(data)
    points = [
        Point(
            data=data,
            digest=digest(pictures),
            dataset=pictures.name,
            sizes=(pictures.pixels, *HIDDEN, pictures.classes),
            regime=regime,
            training=training,
            shares=tuple(shares),
            seed=seed,
        )
        for seed in range(seeds)
        for regime in dict.fromkeys(regimes)
    ]
    todo = [point for point in points if force or not target.has_rows("experiments", point.run_id)]
    failed: dict[str, str] = {}
    environment: dict[str, Any] = {}

    def done(point: Point, outcome: Outcome) -> None:
        if outcome.error is None:
            write_point(target, point, outcome, environment)
        else:
            failed[point.run_id] = f"{point.regime.name}, seed {point.seed}: {outcome.error}"
        observer.task_done(point, failed=[point.name] if outcome.error else [])

    if todo:
        observer.starting(len(todo), sum(point.cost for point in todo), len(points) - len(todo), "networks")
        run_tasks(
            Worker,
            todo,
            pool or PoolOptions(),
            on_start=environment.update,
            on_done=done,
            on_lost=lambda point, reason: done(point, Outcome(error=reason)),
            on_workers=observer.workers,
            on_waiting=observer.waiting,
        )
    return LazyReport(
        store=target.url,
        run_ids=tuple(point.run_id for point in points if point.run_id not in failed),
        kept=len(points) - len(todo),
        failed=tuple(failed.values()),
    )


def _check(regimes: Sequence[Regime], seeds: int, training: Training, shares: Sequence[float]) -> None:
    layers = len(HIDDEN) + 1
    for regime in regimes:
        if not 0.0 < regime.alpha < float("inf"):
            raise ScannerError(f"alpha must be positive, got {regime.alpha:g}")
        if not set(regime.frozen) < set(range(layers)):
            raise ScannerError(
                f"of the {layers} layers 0 to {layers - 1} some can be frozen, not all, got {regime.frozen}"
            )
    if seeds < 1 or training.epochs < 1 or training.batch < 1 or not training.rate > 0.0 or not regimes:
        raise ScannerError("at least one regime, seed, epoch and picture a batch, and a positive rate are needed")
    if not shares or not all(0.0 < share < 1.0 for share in shares):
        raise ScannerError(f"shares to remove lie between 0 and 1, got {', '.join(map(str, shares)) or 'none'}")


def set_name(ordering: str, share: float) -> str:
    """What stands in column `set`: `smallest:20%`."""
    return f"{ordering}:{100.0 * share:g}%"


def write_point(store: Store, point: Point, outcome: Outcome, environment: dict[str, Any]) -> None:
    """Store a point: its rows, then the run that says they are complete.

    Raises:
        StoreError: the store is full or not writable.
    """
    finished_at = datetime.now(UTC)
    common: dict[str, object] = {
        "run_id": point.run_id,
        "model": point.model,
        "revision": None,
        "roles": "hidden",
        "layers": f"0-{len(HIDDEN) - 1}",
        "seed": point.seed,
        "metric": "accuracy",
        "dataset": point.dataset,
        "tokens": None,
        "baseline": outcome.baseline,
        "examples": outcome.examples,
        "seconds": outcome.seconds / max(1, len(outcome.removals)),
        "finished_at": finished_at,
    }
    rows = [
        common
        | {
            "set": set_name(one.ordering, one.share),
            "removed": one.removed,
            "fraction": one.fraction,
            "value": one.accuracy,
            "delta": one.delta,
            "stderr": one.stderr,
        }
        for one in sorted(outcome.removals, key=lambda one: (ORDERINGS.index(one.ordering), one.share))
    ]
    store.write_rows("ablations", point.run_id, _table("ablations", rows), method=point.method)
    run: dict[str, object] = {
        "run_id": point.run_id,
        "kind": KIND,
        "model": point.model,
        "revision": None,
        "source": None,
        "dataset": point.dataset,
        "started_at": None,
        "finished_at": finished_at,
        "seconds": outcome.seconds,
        "tokens": None,
        "scanner_version": __version__,
        "method": to_json(point.method),
        "environment": json.dumps(environment),
    }
    store.write_rows("experiments", point.run_id, _table("experiments", [run]), method=point.method)


def _table(name: str, rows: Sequence[Mapping[str, object]]) -> pa.Table:
    schema = SCHEMAS[name]
    return pa.table({field.name: [row[field.name] for row in rows] for field in schema}, schema=schema)
