"""Lazy learning on Ray: one task trains one network of one regime and measures what it is worth without singular values.

A point, one (regime, seed), is written as soon as it is there: its rows in table `ablations`, then its run in `experiments`. The
name of both is a hash of the pictures and of everything that decides the rows, so no point is computed twice.
In `ablations`: `model` is the network and its regime, `roles` is `hidden` (all three hidden matrices at once), `set` is
`smallest:20%`, `mass:20%` or `random:20%`, `metric` is `accuracy`, `stderr` is that of `delta`.

Source: Staats, Thamm, Rosenow, arXiv 2410.17770v1, App. A, Fig. 9.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from scanner.engine import ScanObserver
from scanner.engine.pool import PoolOptions, run_tasks
from scanner.errors import ScannerError
from scanner.experiments.lazy_task import KIND, Outcome, Point, Worker, digest
from scanner.experiments.mlp import HIDDEN, ORDERINGS, Regime, Training
from scanner.experiments.pictures import load_pictures
from scanner.store import Store, open_store
from scanner.store.tables import rows, to_json
from scanner.version import __version__

REGIMES = (Regime(alpha=1.0), Regime(alpha=15.0), Regime(alpha=1.0, frozen=(0, 1, 2)))
"""Rich, lazy, and the extreme of lazy: random hidden layers that are not trained at all."""
SHARES = tuple(i / 20 for i in range(1, 20))


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
    removals = [
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
    store.write_rows("ablations", point.run_id, _table("ablations", removals), method=point.method)
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


def _table(name: str, found: Sequence[Mapping[str, object]]) -> pa.Table:
    return rows(name, {column: [row[column] for row in found] for column in found[0]}, len(found))
