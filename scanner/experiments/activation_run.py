"""`rmtscan activations`: which blocks are measured together, and what is written.

Of a text of several shards the driver has the sums of the shards so far; now and then it puts them down in the store, so that the
next call begins where an interrupted one was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import torch

from scanner.checkpoint import Checkpoint, MatrixRef, Selection
from scanner.engine import PoolOptions, ScanObserver
from scanner.engine.pool import PoolShape, run_tasks
from scanner.errors import ScannerError
from scanner.experiments.activation_task import ActivationOutcome, ActivationTask, ActivationWorker, Sums
from scanner.experiments.models import Precision, load_config, load_tokenizer, longest_input, model_place
from scanner.experiments.placing import open_target
from scanner.experiments.running import Errors, Failure, rows_table, run_hash, unpack
from scanner.experiments.texts import TextSource, read_texts
from scanner.experiments.tokens import Sequences, padding_id, sequences
from scanner.store import Store, open_store
from scanner.version import __version__

DEFAULT_TOKENS = 16_384
DEFAULT_WINDOW = 512
#: Covariances that one actor may hold at a time, and that may travel in one piece.
MEMORY, TRAVELLING = 4 << 30, 1 << 30
#: A longer text is cut into shards of about so many tokens, which actors share.
SHARD_TOKENS = 16_384
#: Seconds from one writing of sums, which may be 1 GiB, to the next.
KEPT_EVERY = 30.0
#: Eigenvectors of a covariance (twice) and singular vectors, against one product of the same size: about so much more.
_DECOMPOSITION = 10.0
#: Tasks for each worker: what an interruption loses shrinks with it, and repeated forward passes grow.
_TASKS_PER_WORKER = 2
#: Workers to plan for on a cluster whose size nobody has told.
_CLUSTER = 8


@dataclass(frozen=True, kw_only=True)
class ActivationReport:
    """What became of a run."""

    run_id: str
    model: str
    revision: str
    store: str
    tokens: int
    matrices: int
    skipped: dict[str, str]
    """Matrices without rows, and why."""
    failed: dict[str, str]
    """Blocks without a result, and why; the same call tries them again."""
    new: bool
    warning: str | None = None


@dataclass(kw_only=True)
class _Run:
    """The state of a run: every group of blocks is written as it comes, the run's row when none is missing."""

    store: Store
    observer: ScanObserver
    checkpoint: Checkpoint
    parameters: dict[str, object]
    dataset: str
    tokens: int
    skipped: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.run_id = run_hash("activations", self.checkpoint.identity, self.parameters)
        self.errors = Errors(observer=self.observer)
        self._totals: dict[str, Sums] = {}
        self._kept_at = time.monotonic()
        self._waiting: dict[str, dict[int, Sums]] = {}
        self._shared = {
            "run_id": self.run_id,
            "model": self.checkpoint.model,
            "revision": self.checkpoint.revision,
        }

    def done(self, task: ActivationTask, outcome: ActivationOutcome) -> list[ActivationTask]:
        """Write the blocks of a task, or add its sums; the last shard of some blocks is followed by their comparison."""
        if outcome.failure is not None:
            self.errors.add(task.name, outcome.failure)
        if outcome.batch_tokens is not None:
            self.environment["batch_tokens"] = outcome.batch_tokens
        for name, rows in outcome.blocks.items():
            self.skipped |= rows.skipped
            method = self.parameters | {"skipped": rows.skipped}
            for table, packed in (("activation_spectra", rows.spectra), ("overlaps", rows.overlaps)):
                self.store.write_rows(table, name, _with(unpack(packed), self._shared), method=method)
        if task.sums is not None and outcome.blocks:
            self.store.unstage(self.run_id, _group_name(task))
        self.observer.task_done(task, failed=[task.name] if outcome.failure is not None else [])
        return [] if outcome.sums is None else self._add(task, outcome.sums)

    def _add(self, task: ActivationTask, sums: Sums) -> list[ActivationTask]:
        """Add the sums of a shard, in the order of the text: rounding must not depend on which shard comes first."""
        group = _group_name(task)
        waiting = self._waiting.setdefault(group, {})
        waiting[task.shard] = sums
        total = self._totals.pop(group, None)
        while (following := waiting.pop(0 if total is None else total.shards, None)) is not None:
            if total is None:
                total = following
            else:
                total.add(following)
        if total is None:
            return []
        if time.monotonic() - self._kept_at >= KEPT_EVERY:
            self.store.stage(self.run_id, group, total.packed())
            self._kept_at = time.monotonic()
        if total.shards < task.shards:
            self._totals[group] = total
            return []
        return [_comparison(task, total)]

    def remaining(self, tasks: Sequence[ActivationTask]) -> list[ActivationTask]:
        """The tasks without shards whose sums an earlier call has put down; where that is all shards, the comparison is left."""
        found: list[ActivationTask] = []
        for group, of_group in itertools.groupby(tasks, key=_group_name):
            shards = list(of_group)
            content = self.store.staged(self.run_id, group) if len(shards) > 1 else None
            total = Sums.unpacked(content) if content is not None else None
            if total is None:
                found += shards
            elif total.shards == len(shards):
                found.append(_comparison(shards[0], total))
            else:
                self._totals[group] = total
                found += shards[total.shards :]
        return found

    def lost(self, task: ActivationTask, reason: str) -> None:
        """Keep the name of a task that took every worker with it."""
        self.errors.add(task.name, Failure(message=reason))
        self.observer.task_done(task, failed=[task.name])

    def recall(self, blocks: Iterable[str]) -> None:
        """What was skipped in blocks that are there."""
        for name in blocks:
            self.skipped |= self.store.method_of("overlaps", name).get("skipped", {})

    def finish(self) -> None:
        """Write the run's row, unless blocks are missing or it is there."""
        if self.errors.messages or self.store.has_rows("experiments", self.run_id):
            return
        finished_at = datetime.now(UTC)
        row = self._shared | {
            "kind": "activations",
            "source": self.checkpoint.source,
            "dataset": self.dataset,
            "started_at": self.started_at,
            "finished_at": finished_at,
            "seconds": (finished_at - self.started_at).total_seconds(),
            "tokens": self.tokens,
            "scanner_version": __version__,
            "method": json.dumps(self.parameters),
            "environment": json.dumps(self.environment | {"skipped": self.skipped}),
        }
        self.store.write_rows("experiments", self.run_id, rows_table("experiments", row, 1), method=self.parameters)
        self.store.unstage(self.run_id)


def measure_activations(
    reference: str,
    text: TextSource,
    *,
    store: str = "results",
    selection: Selection | None = None,
    tokens: int | None = DEFAULT_TOKENS,
    window: int | None = None,
    dtype: Precision = "float32",
    pool: PoolOptions | None = None,
    observer: ScanObserver | None = None,
) -> ActivationReport:
    """Measure what enters every scanned linear layer while a model reads a text, and compare it with the layer's singular vectors.

    Rows go to the tables `overlaps` and `activation_spectra`, a file a block, and the run to `experiments`; blocks that are there
    are not measured again.

    Args:
        reference: the model: a folder, a GGUF file, org/name.
        text: what it reads.
        store: where the results go; made if it is not there.
        selection: roles and layers; None: all of them.
        tokens: read so many at most, of a table rows drawn from all of it; None: the whole text.
        window: length of a sequence; None: 512, or what the model takes.
        dtype: precision of the model; sums are in float64.
        pool: where and on how many workers.
        observer: told of progress.

    Raises:
        ScannerError: a text, model, role or layer that does not serve; the message says why.
        KeyboardInterrupt: interrupted; finished blocks are in the store, and the same call goes on from there.
    """
    observer, options, selection = observer or ScanObserver(), pool or PoolOptions(), selection or Selection()
    observer.opening(reference)
    target = open_target(reference, selection)
    checkpoint = target.checkpoint
    place = model_place(checkpoint)
    config, tokenizer = load_config(place), load_tokenizer(place)
    length = min(window or DEFAULT_WINDOW, longest_input(config, tokenizer))
    if tokens is not None:
        length = min(length, max(1, tokens))
    texts = read_texts(text, tokens=tokens, length=length)
    read = sequences(tokenizer, texts, length=length, tokens=tokens)
    if not read:
        raise ScannerError(f"text {texts.name} has no tokens")
    parameters: dict[str, object] = {
        "text": texts.digest,
        "ids": read.digest,
        "tokens": tokens,
        "window": length,
        "dtype": dtype,
        "only": sorted({*selection.only}),
        "layers": sorted({*selection.layers}),
    }
    run = _Run(
        store=open_store(store, create=True),
        observer=observer,
        checkpoint=checkpoint,
        parameters=parameters,
        dataset=texts.name,
        tokens=read.tokens,
    )
    blocks = _blocks(target.inventory.matrices, run.run_id)
    todo = {name: refs for name, refs in blocks.items() if not run.store.has_rows("overlaps", name)}
    run.recall(name for name in blocks if name not in todo)
    if todo:
        base = ActivationTask(
            run_id=run.run_id,
            place=place,
            config=config,
            dtype=dtype,
            blocks=(),
            text=read,
            padding=padding_id(tokenizer, config),
            cost=0.0,
        )
        tasks = run.remaining(_tasks(base, todo, _planned_workers(options)))
        # Behind the last of several shards comes the comparison of their sums.
        following = [
            _comparison(task, None) for task in tasks if task.sums is None and 1 < task.shards == task.shard + 1
        ]
        cost = sum(task.cost for task in [*tasks, *following])
        observer.starting(len(tasks) + len(following), cost, len(blocks) - len(todo), "groups of blocks")
        run_tasks(
            ActivationWorker,
            tasks,
            options,
            on_start=run.environment.update,
            on_done=run.done,
            on_lost=run.lost,
            on_workers=observer.workers,
            on_waiting=observer.waiting,
        )
    run.finish()
    widest = max(ref.cols for ref in target.inventory.matrices)
    return ActivationReport(
        run_id=run.run_id,
        model=checkpoint.model,
        revision=checkpoint.revision,
        store=run.store.url,
        tokens=run.tokens,
        matrices=len(target.inventory.matrices),
        skipped=run.skipped,
        failed=run.errors.messages,
        new=bool(todo),
        warning=f"{run.tokens} tokens are fewer than the {widest} features of the widest matrix: its covariance has no full rank"
        if run.tokens <= widest
        else None,
    )


def _with(rows: pa.Table, columns: dict[str, str]) -> pa.Table:
    for name, value in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.repeat(pa.scalar(value), rows.num_rows))
    return rows


def _group_name(task: ActivationTask) -> str:
    """Names the blocks that are measured together, and how the text is cut: 16 hexadecimal digits."""
    text = json.dumps([[name for name, _ in task.blocks], task.shards])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _blocks(refs: Sequence[MatrixRef], run_id: str) -> dict[str, tuple[MatrixRef, ...]]:
    """Matrices by the name of their block's file, in the order of the data's way; those outside blocks come first."""
    found: dict[str, list[MatrixRef]] = {}
    for ref in sorted(
        refs, key=lambda ref: (ref.stack != "encoder", ref.stack or "", -1 if ref.layer is None else ref.layer)
    ):
        where = "outside" if ref.layer is None else f"{ref.layer:05d}"
        found.setdefault("-".join(filter(None, [run_id, ref.stack, where])), []).append(ref)
    return {name: tuple(of_block) for name, of_block in found.items()}


def _planned_workers(options: PoolOptions) -> int:
    if options.workers is not None:
        return options.workers
    if options.address or os.environ.get("RAY_ADDRESS"):
        return _CLUSTER
    here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return PoolShape.fit(options, here, tasks=sys.maxsize).workers


def _shards(text: Sequences) -> list[Sequences]:
    """Consecutive sequences of at most `SHARD_TOKENS` together; a function of the text alone."""
    found: list[list[int]] = [[]]
    held = 0
    for index, one in enumerate(text.ids):
        if found[-1] and held + len(one) > SHARD_TOKENS:
            found.append([])
            held = 0
        found[-1].append(index)
        held += len(one)
    return [text.part(shard) for shard in found]


#: Roles that read the same states of their block as a rule; which do in fact is seen in the forward pass.
_SHARED = {"query": "attention", "key": "attention", "value": "attention", "mlp_up": "mlp", "mlp_gate": "mlp"}


def _input(ref: MatrixRef) -> tuple[object, ...]:
    """Equal for matrices of which one covariance is expected."""
    where = (ref.stack, ref.layer, ref.module, ref.expert)
    return (*where, _SHARED.get(ref.role, ref.tensor), ref.cols)


def _groups(
    blocks: dict[str, tuple[MatrixRef, ...]], shards: int, workers: int
) -> list[tuple[tuple[str, tuple[MatrixRef, ...]], ...]]:
    """Neighbouring blocks whose covariances fit into memory together, unless one block's alone do not.

    Where there is one shard, blocks are what the workers share: in groups of about equal size.
    """
    size = {name: 8 * sum({_input(ref): ref.cols**2 for ref in refs}.values()) for name, refs in blocks.items()}
    share = sum(size.values()) / min(len(blocks), _TASKS_PER_WORKER * workers) * 1.01
    target = min(float(MEMORY), share) if shards == 1 else float(TRAVELLING)
    groups: list[list[str]] = [[]]
    held = 0
    for name in blocks:
        if groups[-1] and held + size[name] > target:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size[name]
    return [tuple((name, blocks[name]) for name in group) for group in groups]


def _comparison(task: ActivationTask, sums: Sums | None) -> ActivationTask:
    """What follows the last shard of some blocks: the comparison of the sums of all shards."""
    return replace(task, text=Sequences(ids=()), sums=sums, cost=_decompositions(task.blocks))


def _decompositions(blocks: Sequence[tuple[str, Sequence[MatrixRef]]]) -> float:
    """Their cost, in the unit of the sums' accumulation."""
    return _DECOMPOSITION * sum(float(ref.cols**3) for _, refs in blocks for ref in refs)


def _tasks(base: ActivationTask, blocks: dict[str, tuple[MatrixRef, ...]], workers: int) -> list[ActivationTask]:
    """One for each group of blocks and shard of the text; the largest first, the shards of a group together."""
    shards = _shards(base.text)
    before, tasks = 0, []
    for group in _groups(blocks, len(shards), workers):
        before += len(group)
        for number, text in enumerate(shards):
            # Accumulation for its own blocks and a forward pass up to the last of them; then the comparison, if it is not apart.
            cost = (
                text.tokens * sum(float(ref.cols**2) for _, refs in group for ref in refs) * (1 + before / len(blocks))
            )
            cost += _decompositions(group) if len(shards) == 1 else 0.0
            tasks.append(replace(base, blocks=group, text=text, cost=cost, shard=number, shards=len(shards)))
    if len(shards) > 1:
        return tasks
    return sorted(tasks, key=lambda task: (-task.cost, task.name))
