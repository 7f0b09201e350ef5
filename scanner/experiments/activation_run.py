"""`rmtscan activations`: which blocks are measured together, the actor that measures them, and what is written.

Covariances do not travel. One is n x n in float64 (134 MB at n = 4096), and there are four in a block, so a task is some blocks
of the model and *all* of the text: its actor runs the shards of the text one after the other through its replica, as far as the
last of its blocks, and keeps the sums to itself; only eigenvalues and overlaps come back. That costs forward passes, of which
every task makes its own, and these are the cheaper half: accumulation in float64 takes as long or longer. A matrix's sum is
built by one actor in one order, so the result is the same bit for bit, however many actors there are.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from scanner.checkpoint import MatrixRef, Selection
from scanner.engine import PoolOptions, ScanObserver
from scanner.engine.pool import run_tasks
from scanner.errors import ScannerError
from scanner.experiments.activations import Eigensystem, Moments, Recorder, eigensystem, overlaps
from scanner.experiments.models import ModelPlace, Precision, load_config, load_tokenizer, longest_input, model_place
from scanner.experiments.placing import Placed, open_target, place_matrices
from scanner.experiments.running import Errors, Failure, Resident, pack, rows_table, run_hash, unpack
from scanner.experiments.texts import TextSource, read_texts
from scanner.experiments.tokens import BATCH_TOKENS, Batch, Batches, Ids, padding_id, sequences
from scanner.rmt import metrics
from scanner.rmt.decomposition import decompose
from scanner.rmt.marchenko_pastur import singular_value_edges
from scanner.rmt.sigma import sigma_median
from scanner.store import open_store
from scanner.version import __version__

DEFAULT_TOKENS = 16_384
DEFAULT_WINDOW = 512
#: Covariances that one actor may hold at a time.
MEMORY = 4 << 30
#: Tasks for each worker: what an interruption loses shrinks with it, and repeated forward passes grow.
_TASKS_PER_WORKER = 2
#: Workers to plan for on a cluster whose size nobody has told.
_CLUSTER = 8


@dataclass(frozen=True, kw_only=True)
class ActivationTask:
    """Measure the inputs of all matrices of some neighbouring blocks, on all of the text."""

    run_id: str
    place: ModelPlace
    dtype: Precision
    blocks: tuple[tuple[str, tuple[MatrixRef, ...]], ...]
    """Name of the block's file, and its matrices."""
    ids: tuple[Ids, ...]
    padding: int
    cost: float

    @property
    def name(self) -> str:
        """The run and the first of its blocks."""
        return f"{self.run_id}/{self.blocks[0][0]}"


@dataclass(frozen=True, kw_only=True)
class BlockRows:
    """The rows of one block, packed; the columns that say which run they belong to are filled in by the driver."""

    overlaps: bytes
    spectra: bytes


@dataclass(frozen=True, kw_only=True)
class ActivationOutcome:
    """What came of a task: rows by block, matrices without rows and why, and how far batches had to be cut down."""

    blocks: dict[str, BlockRows]
    skipped: dict[str, str]
    batch_tokens: int | None = None
    failure: Failure | None = None


class ActivationWorker(Resident):
    """An actor with one replica of the model."""

    def run(self, task: ActivationTask) -> ActivationOutcome:
        """Carry out a task; errors are outcomes."""
        with self.computing():
            try:
                model = self.model(task.place, "own", task.dtype)
            except ScannerError as error:
                return ActivationOutcome(blocks={}, skipped={}, failure=Failure(message=str(error), hopeless=True))
            batches = Batches(task.padding, BATCH_TOKENS[self._device])
            try:
                blocks, skipped = measure_blocks(model, task, batches)
            except Exception as error:  # whatever a block does, the others go on, and a line says what it was
                return ActivationOutcome(
                    blocks={}, skipped={}, failure=Failure(message=f"{type(error).__name__}: {error}")
                )
            return ActivationOutcome(blocks=blocks, skipped=skipped, batch_tokens=batches.smallest)


def measure_blocks(model: Any, task: ActivationTask, batches: Batches) -> tuple[dict[str, BlockRows], dict[str, str]]:
    """Run the text through the model and measure the inputs of a task's matrices; a pure function of both.

    Returns:
        Rows by block, and of matrices without rows name and reason.
    """
    refs = [ref for _, of_block in task.blocks for ref in of_block]
    placed, skipped = place_matrices(model, refs)
    modules = {}
    for one in placed:
        module = model.get_submodule(one.module)
        if one.index is not None or getattr(module, "weight", None) is None or module.weight.ndim != 2:
            skipped[one.ref.tensor] = "it is not the weight of a linear layer of its own: no hook sees its input"
        else:
            modules[one.module] = module
    recorder = Recorder(modules=modules)

    def compute(batch: Batch, indices: list[int]) -> None:
        recorder.forward(model, batch.inputs(model))

    if modules:
        with recorder:
            batches.run(task.ids, compute)
    by_key = {one.ref.key: one for one in placed}
    eigen: dict[tuple[str, bool], Eigensystem] = {}
    found: dict[str, BlockRows] = {}
    for name, of_block in task.blocks:
        eigen.clear()  # those of the block before are not needed any more
        tables: list[tuple[pa.Table, pa.Table]] = []
        for ref in of_block:
            at = by_key.get(ref.key)
            if at is None or at.module not in modules:
                continue
            group = recorder.shared.get(at.module, at.module)
            moments = recorder.moments.get(group)
            if moments is None or moments.count == 0:
                skipped[ref.tensor] = recorder.unusable.get(group, "no token reached it")
                continue
            tables += _rows(model, at, group, moments, eigen)
        found[name] = BlockRows(
            overlaps=pack(_joined("overlaps", [pair[0] for pair in tables])),
            spectra=pack(_joined("activation_spectra", [pair[1] for pair in tables])),
        )
    return found, skipped


def _joined(name: str, tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables([rows_table(name, {}, 0), *tables])


def _rows(
    model: Any, one: Placed, group: str, moments: Moments, eigen: dict[tuple[str, bool], Eigensystem]
) -> list[tuple[pa.Table, pa.Table]]:
    """Rows of `overlaps` and `activation_spectra` of one matrix, centred and not."""
    ref = one.ref
    parts = decompose(one.matrix(model))
    s = parts.singular_values.cpu().numpy()
    lower, upper = singular_value_edges(sigma_median(s, ref.rows, ref.cols), ref.rows, ref.cols)
    region = metrics.regions(s, lower, upper, metrics.numerical_rank(s, ref.rows, ref.cols))
    peak = parts.right.abs().amax(dim=1).cpu().numpy()
    place: dict[str, object] = {
        "tensor": ref.tensor,
        "stack": ref.stack,
        "layer": ref.layer,
        "role": ref.role,
        "module": ref.module,
        "cols": ref.cols,
        "tokens": moments.count,
    }
    tables = []
    for centred in (True, False):
        key = (group, centred)
        if key not in eigen:
            eigen[key] = eigensystem(moments.covariance(centred=centred))
        measured = overlaps(parts.right, eigen[key])
        columns: dict[str, object] = {
            "expert": ref.expert,
            "rows": ref.rows,
            "k": np.arange(len(s)),
            "singular_value": s,
            "region": region,
            "overlap": measured.overlap,
            "match": measured.match,
            "eigenvalue": measured.eigenvalue,
            "peak": peak,
            "centred": centred,
        }
        values = eigen[key].values.cpu().numpy()
        spectrum: dict[str, object] = {"index": np.arange(len(values)), "eigenvalue": values, "centred": centred}
        tables.append(
            (
                _placed("overlaps", place | columns, len(s)),
                _placed("activation_spectra", place | spectrum, len(values)),
            )
        )
    return tables


def _placed(name: str, columns: dict[str, object], length: int) -> pa.Table:
    # The driver knows the run and the model; required columns are filled for the moment.
    return rows_table(name, {"run_id": "", "model": ""} | columns, length)


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
        tokens: read so many at most; None: the whole text.
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
    texts = read_texts(text)
    checkpoint = target.checkpoint
    place = model_place(checkpoint)
    config, tokenizer = load_config(place), load_tokenizer(place)
    length = min(window or DEFAULT_WINDOW, longest_input(config, tokenizer))
    ids = tuple(sequences(tokenizer, texts, length=length, tokens=tokens))
    if not ids:
        raise ScannerError(f"text {texts.name} has no tokens")
    parameters = {
        "text": texts.digest,
        "tokens": tokens,
        "window": length,
        "dtype": dtype,
        "only": sorted({*selection.only}),
        "layers": sorted({*selection.layers}),
    }
    run_id = run_hash("activations", checkpoint.identity, parameters)
    opened = open_store(store, create=True)
    blocks = _blocks(target.inventory.matrices, run_id)
    todo = {name: refs for name, refs in blocks.items() if not opened.has_rows("overlaps", name)}
    known = opened.has_rows("experiments", run_id)
    errors, skipped = Errors(observer=observer), dict[str, str]()
    state: dict[str, Any] = {"environment": {}, "seconds": 0.0}
    count = sum(len(one) for one in ids)
    shared = {"run_id": run_id, "model": checkpoint.model, "revision": checkpoint.revision}
    started_at, clock = datetime.now(UTC), time.monotonic()

    def done(task: ActivationTask, outcome: ActivationOutcome) -> None:
        if outcome.failure is not None:
            errors.add(task.name, outcome.failure)
        skipped.update(outcome.skipped)
        if outcome.batch_tokens is not None:
            state["environment"]["batch_tokens"] = outcome.batch_tokens
        for name, rows in outcome.blocks.items():
            opened.write_rows("activation_spectra", name, _with(unpack(rows.spectra), shared), method=parameters)
            opened.write_rows("overlaps", name, _with(unpack(rows.overlaps), shared), method=parameters)
        observer.task_done(task, failed=[task.name] if outcome.failure is not None else [])

    def lost(task: ActivationTask, reason: str) -> None:
        errors.add(task.name, Failure(message=reason))
        observer.task_done(task, failed=[task.name])

    if todo:
        base = ActivationTask(
            run_id=run_id, place=place, dtype=dtype, blocks=(), ids=ids, padding=padding_id(tokenizer), cost=0.0
        )
        tasks = _tasks(base, todo, _planned_workers(options))
        observer.starting(len(tasks), sum(task.cost for task in tasks), len(blocks) - len(todo), "groups of blocks")
        run_tasks(
            ActivationWorker,
            tasks,
            options,
            on_start=state["environment"].update,
            on_done=done,
            on_lost=lost,
            on_workers=observer.workers,
            on_waiting=observer.waiting,
        )
    if not errors.messages and not known:
        row = shared | {
            "kind": "activations",
            "source": checkpoint.source,
            "dataset": texts.name,
            "started_at": started_at,
            "finished_at": datetime.now(UTC),
            "seconds": time.monotonic() - clock,
            "tokens": count,
            "scanner_version": __version__,
            "method": json.dumps(parameters),
            "environment": json.dumps(state["environment"] | {"skipped": skipped}),
        }
        opened.write_rows("experiments", run_id, rows_table("experiments", row, 1), method=parameters)
    widest = max(ref.cols for ref in target.inventory.matrices)
    return ActivationReport(
        run_id=run_id,
        model=checkpoint.model,
        revision=checkpoint.revision,
        store=opened.url,
        tokens=count,
        matrices=len(target.inventory.matrices),
        skipped=skipped,
        failed=errors.messages,
        new=bool(todo),
        warning=f"{count} tokens are fewer than the {widest} features of the widest matrix: its covariance has no full rank"
        if count <= widest
        else None,
    )


def _with(rows: pa.Table, columns: dict[str, str]) -> pa.Table:
    for name, value in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.repeat(pa.scalar(value), rows.num_rows))
    return rows


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
    remote = options.address or os.environ.get("RAY_ADDRESS")
    return _CLUSTER if remote else (os.cpu_count() or 1)


def _tasks(base: ActivationTask, blocks: dict[str, tuple[MatrixRef, ...]], workers: int) -> list[ActivationTask]:
    """Neighbouring blocks in groups of about equal size; no group's covariances exceed `MEMORY`, unless one block's do."""
    size = {name: sum(8 * ref.cols**2 for ref in refs) for name, refs in blocks.items()}
    target = min(float(MEMORY), sum(size.values()) / min(len(blocks), _TASKS_PER_WORKER * workers) * 1.01)
    groups: list[list[str]] = [[]]
    held = 0
    for name in blocks:
        if groups[-1] and held + size[name] > target:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size[name]
    before, tasks = 0, []
    for group in groups:
        before += len(group)
        # Accumulation and decompositions of its own blocks, and a forward pass up to the last of them.
        cost = sum(float(ref.cols**2) * (ref.cols + sum(map(len, base.ids))) for name in group for ref in blocks[name])
        cost *= 1 + before / len(blocks)
        tasks.append(replace(base, blocks=tuple((name, blocks[name]) for name in group), cost=cost))
    return sorted(tasks, key=lambda task: (-task.cost, task.name))
