"""Fine-tuning and removal in both orders, on Ray: one task is one training with one seed, and all that is measured on its result.

A series is everything that is comparable: one base, one dataset, one recipe; its hash is `run_id`. A point of it is (order, roles,
decile, seed): `none` is the tuned model as it is, `tune-first` the same without a decile of its singular values, `remove-first` one
that was trained after the decile was taken from the base. The first two share a training. A point is a file of table `finetunes`,
written as soon as it is measured and never computed twice; the run's method, and what happened at each point, are in `experiments`.

Source: Staats, Thamm, Rosenow, arXiv 2410.17770, v1 sec. 5 (Fig. 8), v3 sec. 5 (Fig. 6).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scanner.checkpoint import ROLES, Checkpoint, MatrixRef, Selection, list_matrices
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import SCHEME
from scanner.engine import PoolOptions, ScanObserver
from scanner.engine.pool import run_tasks
from scanner.errors import ScannerError
from scanner.experiments.finetune_task import (
    ORDERS,
    FineTuneOutcome,
    FineTuneTask,
    FineTuneWorker,
    Measured,
    Order,
    Point,
    point_file,
)
from scanner.experiments.finetune_training import Recipe, require_classifier
from scanner.experiments.labels import SHORTEST, Dataset, prepare
from scanner.experiments.models import load_config, load_tokenizer, longest_input, model_place
from scanner.experiments.placing import open_target
from scanner.experiments.running import Failure, rows_table, run_hash
from scanner.experiments.texts import TextSource, read_texts
from scanner.store import Store, open_store
from scanner.version import __version__

KIND = "finetune"
DECILES = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class FineTuneReport:
    """What became of the points of one call."""

    run_id: str
    model: str
    store: str
    classes: tuple[str, ...]
    train: int
    test: int
    majority: float
    """Accuracy of always naming the commonest class."""
    points: int
    """In the store now, of those that were asked for."""
    kept: int
    """In the store before."""
    failed: dict[str, str]
    """Points that are missing, and why."""
    smaller: dict[str, int] = field(default_factory=dict)
    """Points whose batches did not fit into memory at once, and how many examples did."""


def finetune(
    base: str,
    task: TextSource,
    *,
    orders: Sequence[Order] = ("remove-first", "tune-first"),
    deciles: Sequence[int] = DECILES,
    seeds: int = 3,
    roles: Sequence[str] = (),
    recipe: Recipe | None = None,
    length: int = 128,
    examples: int | None = None,
    test_share: float = 0.2,
    folder: str | None = None,
    store: str = "results",
    pool: PoolOptions | None = None,
    observer: ScanObserver | None = None,
) -> FineTuneReport:
    """Fine-tune a model on labelled texts with a decile of its singular values removed before or afterwards.

    The untouched runs (`none`), which everything is compared with, are always among the points.

    Args:
        base: the model: a folder, a GGUF file, org/name.
        task: labelled texts or pairs.
        orders: some of `ORDERS`.
        deciles: 1 (the smallest singular values) to 10.
        seeds: how many of each: seeds 0, 1, ... of the head, dropout and the order of the examples.
        roles: the matrices that deciles are taken from; empty: all within the blocks.
        recipe: how it is trained; None: the defaults of `Recipe`.
        length: longest sequence, in tokens.
        examples: to train on at most; None: all but the test part.
        test_share: share of the texts that accuracy is measured on.
        folder: where the tuned models are kept, each in a folder of its own whose name is that of the point's file
            (`RUN-none-seed0`); None: they are not. On a cluster a place that all machines share.
        store: where the results go; made if it is not there.
        pool: where and on how many workers.
        observer: told of progress.

    Raises:
        ScannerError: a model, text, role or parameter that does not serve; the message says why.
        KeyboardInterrupt: interrupted; finished points are in the store, and the same call goes on from there.
    """
    observer, recipe = observer or ScanObserver(), recipe or Recipe()
    _check(orders, deciles, seeds, examples, test_share, length)
    keeping = None if folder is None else _folder(folder)
    observer.opening(base)
    texts = read_texts(task, labelled=True)
    target = open_target(base, Selection(only=tuple(roles)))
    checkpoint, refs = target.checkpoint, _within_blocks(target.inventory.matrices)
    place = model_place(checkpoint)
    config = load_config(place)
    require_classifier(config)
    tokenizer = load_tokenizer(place)
    length = min(length, longest_input(config, tokenizer))
    data = prepare(texts, tokenizer, length=length, test_share=test_share, examples=examples)
    method = asdict(recipe) | {"data": data.digest, "length": length}
    run_id = run_hash(KIND, checkpoint.identity, method)
    series = _Series(
        store=open_store(store, create=True),
        run_id=run_id,
        checkpoint=checkpoint,
        data=data,
        method=method
        | {"texts": texts.digest, "train": len(data.train), "test": len(data.test), "test_share": test_share}
        | {"majority": data.majority, "dropped": data.dropped},
        roles=_roles(refs, checkpoint),
        observer=observer,
        keeping=keeping,
    )
    points = _points(orders, deciles, seeds)
    todo = [point for point in points if not series.has(point)]
    if todo:
        base_task = FineTuneTask(
            run_id=run_id,
            place=place,
            config=config,
            pooler=any("pooler" in entry.name for entry in checkpoint.tensors),
            refs=refs,
            data=data,
            recipe=recipe,
            seed=0,
            first=None,
            points=(),
            roles=series.roles,
            folder=None if keeping is None else str(keeping),
        )
        tasks = _tasks(base_task, todo)
        observer.starting(len(tasks), sum(one.cost for one in tasks), len(points) - len(todo), "trainings")
        run_tasks(
            FineTuneWorker,
            tasks,
            pool or PoolOptions(),
            on_start=series.environment.update,
            on_done=series.done,
            on_lost=lambda one, reason: series.done(one, FineTuneOutcome(failure=Failure(message=reason))),
            on_workers=observer.workers,
            on_waiting=observer.waiting,
        )
    return FineTuneReport(
        run_id=run_id,
        model=checkpoint.model,
        store=series.store.url,
        classes=data.classes,
        train=len(data.train),
        test=len(data.test),
        majority=data.majority,
        points=len(points) - len(series.failed),
        kept=len(points) - len(todo),
        failed=series.failed,
        smaller=series.smaller,
    )


@dataclass(kw_only=True)
class _Series:
    """Where results go: the points of one series."""

    store: Store
    run_id: str
    checkpoint: Checkpoint
    data: Dataset
    method: dict[str, Any]
    roles: str
    observer: ScanObserver
    keeping: Path | None
    """Where models are kept."""
    environment: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    smaller: dict[str, int] = field(default_factory=dict)

    def name(self, point: Point) -> str:
        """The point's file: the series, and what is special to the point."""
        return point_file(self.run_id, point, self.roles)

    def has(self, point: Point) -> bool:
        """Whether a point needs nothing done: it is in the store, and so is its model where models are to be kept."""
        name = self.name(point)
        rows = self.store.file_rows("finetunes", name)
        if not rows or self.keeping is None:
            return bool(rows)
        wanted = self.keeping / name
        return rows[0]["checkpoint"] == str(wanted) and wanted.is_dir()

    def done(self, task: FineTuneTask, outcome: FineTuneOutcome) -> None:
        """Write the points of a task, and what happened to the others.

        Raises:
            ScannerError: no other training would fare better.
        """
        for measured in outcome.measured:
            self._write(measured, task, outcome)
        if outcome.failure is not None and outcome.failure.hopeless:
            raise ScannerError(outcome.failure.message)
        finished = {
            measured.point for measured in outcome.measured if self.keeping is None or measured.checkpoint is not None
        }
        missing = [point for point in task.points if point not in finished]
        for point in missing:
            self.failed[point.label] = outcome.failure.message if outcome.failure is not None else "no result"
        self.observer.task_done(task, failed=[point.label for point in missing])

    def _write(self, measured: Measured, task: FineTuneTask, outcome: FineTuneOutcome) -> None:
        point, name = measured.point, self.name(measured.point)
        note: dict[str, object] = {"device": outcome.device, "removed": measured.removed}
        if outcome.trained is not None:
            note["loss"] = outcome.trained.loss
            if outcome.trained.at_a_time < task.recipe.batch:
                note["examples_at_a_time"] = self.smaller[point.label] = outcome.trained.at_a_time
        if measured.batch_tokens is not None:
            note["batch_tokens"] = measured.batch_tokens
        self._write_run(name, note, measured.seconds)
        row: dict[str, object] = {
            "run_id": self.run_id,
            "base_model": self.checkpoint.model,
            "dataset": self.data.name,
            "order": point.order,
            "decile": point.decile,
            "seed": point.seed,
            "roles": None if point.decile is None else self.roles,
            "accuracy": measured.accuracy,
            "examples": len(self.data.train),
            "epochs": task.recipe.epochs,
            "seconds": measured.seconds,
            "checkpoint": measured.checkpoint,
            "finished_at": datetime.now(UTC),
        }
        self.store.write_rows("finetunes", name, rows_table("finetunes", row, 1), method=self.method | asdict(point))

    def _write_run(self, name: str, note: dict[str, object], seconds: float) -> None:
        """The row of the series, with a note about each of its points; written before the point, which says that it is there."""
        now = datetime.now(UTC)
        found = self.store.file_rows("experiments", self.run_id)
        before: dict[str, Any] = found[0] if found else {"started_at": now, "seconds": 0.0, "environment": "{}"}
        points = json.loads(before["environment"]).get("points", {})
        row: dict[str, object] = {
            "run_id": self.run_id,
            "kind": KIND,
            "model": self.checkpoint.model,
            "revision": self.checkpoint.revision,
            "source": self.checkpoint.source,
            "dataset": self.data.name,
            "started_at": before["started_at"],
            "finished_at": now,
            "seconds": before["seconds"] + seconds,
            "tokens": self.data.train.tokens,
            "scanner_version": __version__,
            "method": json.dumps(self.method, sort_keys=True),
            "environment": json.dumps(self.environment | {"points": points | {name: note}}),
        }
        self.store.write_rows("experiments", self.run_id, rows_table("experiments", row, 1), method=self.method)


def _points(orders: Sequence[Order], deciles: Sequence[int], seeds: int) -> list[Point]:
    found = [Point(order="none", decile=None, seed=seed) for seed in range(seeds)]
    for order in ORDERS:
        if order in orders and order != "none":
            found += [
                Point(order=order, decile=decile, seed=seed) for seed in range(seeds) for decile in sorted({*deciles})
            ]
    return found


def _tasks(base: FineTuneTask, points: Sequence[Point]) -> list[FineTuneTask]:
    """One a training, the seeds one after the other: an interrupted run has whole seeds."""
    groups: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        first = point.decile if point.order == "remove-first" and point.decile is not None else 0
        groups.setdefault((point.seed, first), []).append(point)
    return [
        replace(base, seed=seed, first=first or None, points=tuple(groups[seed, first]))
        for seed, first in sorted(groups)
    ]


def _roles(refs: Sequence[MatrixRef], checkpoint: Checkpoint) -> str:
    """What stands in column `roles`: `all`, or the roles in a fixed order."""
    everything = {ref.role for ref in _within_blocks(list_matrices(checkpoint, Selection()).matrices)}
    mine = {ref.role for ref in refs}
    return "all" if mine == everything else ",".join(role for role in ROLES if role in mine)


def _within_blocks(refs: Sequence[MatrixRef]) -> tuple[MatrixRef, ...]:
    return tuple(ref for ref in refs if ref.layer is not None) or tuple(refs)


def _check(
    orders: Sequence[Order],
    deciles: Sequence[int],
    seeds: int,
    examples: int | None,
    test_share: float,
    length: int,
) -> None:
    for order in orders:
        if order not in ORDERS:
            raise ScannerError(f"no order {order!r}: choose from {', '.join(ORDERS)}")
    for decile in deciles:
        if not 1 <= decile <= 10:
            raise ScannerError(f"deciles go from 1, the smallest singular values, to 10, got {decile}")
    if any(order != "none" for order in orders) and not deciles:
        raise ScannerError("no decile is named: 1, the smallest singular values, to 10")
    if seeds < 1 or (examples is not None and examples < 2):
        raise ScannerError(f"at least one seed and two examples, got {seeds} and {examples}")
    if not 0.0 < test_share < 1.0:
        raise ScannerError(f"the test share lies between 0 and 1, got {test_share:g}")
    if length < SHORTEST:
        raise ScannerError(f"sequences of at least {SHORTEST} tokens are needed, got {length}")


def _folder(folder: str) -> Path:
    if SCHEME.match(folder):
        raise ScannerError(f"models are kept in a folder, not behind a URL: {printable(folder)}")
    path = Path(folder).expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ScannerError(
            f"the tuned models cannot be kept in {printable(str(path))}: {error.strerror or error}"
        ) from error
    return path
