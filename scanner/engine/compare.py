"""Compare a base checkpoint with a tuned one: scan both and their difference, then compare every pair of matrices."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch

from scanner import display
from scanner.checkpoint import (
    Checkpoint,
    MatrixRef,
    difference,
    list_matrices,
    match_matrices,
    open_checkpoint,
    read_matrix,
)
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import FileVersion, check_unchanged
from scanner.checkpoint.structure.matching import Matching
from scanner.engine.method import Method, method_of, scan_id
from scanner.engine.options import PoolOptions
from scanner.engine.plan import decomposition_cost, decomposition_limit, largest_first, matrix_memory, spreads
from scanner.engine.rows import pack, unpack
from scanner.engine.run import run
from scanner.engine.scan import ScanWork
from scanner.engine.task import Context, Failure, Task
from scanner.engine.tasks import TieTask, bytes_of, versions_read
from scanner.engine.work import Observer, Stored, Work
from scanner.errors import ChangedError, CheckpointError, ConfigError, GatedError, RateLimitedError
from scanner.rmt import pairs
from scanner.rmt.decomposition import Decomposition, LowRank, decompose
from scanner.rmt.ensembles import ENSEMBLES, Ensemble
from scanner.rmt.metrics import numerical_rank
from scanner.store import SCHEMAS, Store, open_store
from scanner.store.references import reference_of, scans_of
from scanner.store.tables import MATRIX_KEY, lists_of_text, rows
from scanner.version import __version__

#: Increased whenever the same pair would give different rows; part of the identity of every comparison.
COMPARISON_VERSION = 2

_PLACE = "stack layer role head expert rows cols module".split()
_VECTOR_COLUMNS = [*MATRIX_KEY, "k", "u_p", "v_p"]
_COUNTED = ("outliers_left", "outliers_right", "u_p_mean", "v_p_mean")
_OF_DELTA = "effective_rank outliers_left outliers_right stable_rank spectral_norm u_p_mean v_p_mean".split()

_FAILED = "failed"

Key = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """Result of a comparison."""

    store: str
    pair_id: str
    base_model: str
    tuned_model: str
    matrices: int
    """Number of compared pairs."""
    identical: tuple[str, ...]
    """Tuned tensors that equal their base bit for bit."""
    unmatched: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> matrices that have no partner for it."""
    failed: tuple[str, ...] = ()
    """Tuned matrices that could not be compared or whose difference could not be analyzed, each with the reason."""
    new: bool = True
    """False if the store already had this comparison."""
    heads: bool = False
    """Whether single attention heads were compared instead of whole matrices."""
    change_median: float | None = None
    """Median of the relative change over the pairs; None if there are no pairs."""
    change_largest: float | None = None
    """The largest relative change."""
    largest_in: str = ""
    """Place of the largest relative change, for example `layer 5, mlp_down`."""

    def __repr__(self) -> str:
        pair = f"{display.plain(self.base_model)} → {display.plain(self.tuned_model)}"
        change = "" if self.change_median is None else f", median change {self.change_median:.3g}"
        matrices = display.counted(self.matrices, "matrix", "matrices")
        return (
            f"ComparisonReport({pair!r}: {matrices}, {len(self.identical)} identical, "
            f"{sum(map(len, self.unmatched.values()))} unmatched, {len(self.failed)} failed{change})"
        )

    def _repr_html_(self) -> str:
        change = (
            None
            if self.change_largest is None
            else f"{display.shown(self.change_largest)} in {display.plain(self.largest_in)}"
        )
        rows = [
            ("compared matrices", self.matrices),
            ("identical", len(self.identical)),
            ("unmatched", sum(map(len, self.unmatched.values()))),
            ("failed", len(self.failed)),
            ("median change |ΔW| / |W|", self.change_median),
            ("largest change", change),
        ]
        caption = f"{display.bold(self.base_model)} → {display.bold(self.tuned_model)}"
        return display.html_table(("", ""), rows, caption=caption, notes=self.failed[:3])

    @property
    def exit_status(self) -> int:
        """0: done; 3: some matrices failed."""
        return 3 if self.failed else 0


def find_reference(store: Store, named: str) -> str:
    """Return the reference to open for a name: that of the model with this name in the store, otherwise the name itself."""
    if _exists(named):
        return named
    scans = scans_of(store, named)
    return (reference_of(store, scans[0]) if scans else "") or named


def _exists(named: str) -> bool:
    return os.path.exists(named)  # noqa: PTH110 (a URL is not a path)


def _open(store: Store, named: str, reference: str, *, download: bool) -> Checkpoint:
    """Open a checkpoint; if this fails and the name may refer to a model in the store, the error lists similar models."""
    try:
        return open_checkpoint(reference, download=download)
    except (GatedError, RateLimitedError):
        raise
    except CheckpointError as error:
        scanned = sorted({*store.query("scans")["model"].to_pylist()})
        if _exists(named) or "://" in named or named in scanned:
            raise
        for scan in store.unfinished():
            if scan.model == named:
                raise CheckpointError(
                    f"the scan of {printable(named)!r} in {store.url} is not finished ({scan.parts} matrices so far): "
                    f"'rmtscan scan REF --store {store.url}' with the same reference completes it"
                ) from error
        near = ", ".join(map(printable, difflib.get_close_matches(named, scanned, n=5, cutoff=0.0)))
        raise type(error)(f"{error}; scanned models with a similar name: {near}" if near else str(error)) from error


def stored_method(store: Store, names: Sequence[str]) -> Method:
    """Return the method with which all named models of the store were scanned, or if there is none, the first of them.

    Of several methods, the default is chosen if it is among them, otherwise the newest.
    """
    found: list[list[Method]] = []
    for name in names:
        scans = [] if _exists(name) else scans_of(store, name)
        found += filter(None, [[method for scan in scans if (method := _method_of(scan)) is not None]])
    if not found:
        return Method()
    shared = [method for method in found[0] if all(method in others for others in found)] or found[0]
    return Method() if Method() in shared else shared[0]


def _method_of(scan: Mapping[str, Any]) -> Method | None:
    """Return the method of a scan that a comparison can have, too."""
    try:
        found = method_of(json.loads(scan["method"] or ""))
    except (ValueError, TypeError, AttributeError):
        return None
    return None if found is None or found.values_only else found


def compare(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] = "results",
    method: Method | None = None,
    ensembles: Sequence[Ensemble] = ENSEMBLES,
    pool: PoolOptions | None = None,
    force: bool = False,
    download: bool = False,
    observer: Observer | None = None,
) -> ComparisonReport:
    """Compare a base checkpoint with a tuned one, on a local Ray or a running cluster; existing results are reused.

    Both checkpoints and their difference (`delta:BASE..TUNED`) are scanned unless the store has them. Then each pair of matrices at
    the same position (stack, layer, role, head, expert) gives a row of `pairs`, and rows of `pair_vectors` (one per rank) and
    `pair_subspaces` (one per decile).

    Args:
        base: a reference as for `scan`, or the name of a model in the store.
        tuned: likewise.
        store: where the results are written; created if it does not exist.
        method: what is computed; None: the method of the scans of named models in the store, otherwise the defaults of `Method`.
        ensembles: random controls, one for each distinct shape.
        pool: where and on how many workers; None: this machine, one worker per core (or GPU).
        force: compare again even if the store has the results.
        download: download whole files of the Hub into its cache instead of reading byte ranges.
        observer: receives the progress.

    Raises:
        CheckpointError: a checkpoint cannot be opened, both are the same, or they have no matrix in common.
        ScannerError: nothing can continue: a store that cannot be written, no worker, no cluster.
        KeyboardInterrupt: interrupted; finished results are in the store, and the same call resumes.
    """
    observer, options = observer or Observer(), pool or PoolOptions()
    target = open_store(os.fspath(store), create=True)
    names = [os.fspath(named) for named in (base, tuned)]
    method = method or stored_method(target, names)
    if method.values_only:
        raise ConfigError("values_only", "leaves out the singular vectors, which a comparison needs")
    scans = ScanWork(target, method, observer, ensembles, strict=True)
    opened: list[Checkpoint] = []
    for named in names:
        reference = find_reference(target, named)
        observer.opening(reference)
        opened.append(_open(target, named, reference, download=download))
    comparison = ComparisonWork(target, method, opened[0], opened[1], force=force)
    if comparison.batch.committed and not force:
        problem = target.problem("comparisons", comparison.batch.batch_id)
        if problem is None:
            return comparison.report(new=False)
        observer.damaged(f"{problem}: it is computed again")
    for checkpoint in (*opened, comparison.delta):
        scans.add_opened(checkpoint.model, checkpoint, force=False)
    run([scans, comparison], options, observer)
    return comparison.report(new=True)


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """Result of one pair: change, overlaps by rank, and subspaces as packed tables."""

    change: pairs.Change
    intruders: int
    vectors: bytes
    """Columns k, singular_value_base, singular_value_tuned, u_overlap, u_match, v_overlap, v_match; one row per rank."""
    subspaces: bytes
    """Columns side, decile, dimensions, overlap, angle_smallest, angle_mean, angle_largest."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PairTask(Task):
    """Read a matrix of one checkpoint and its counterpart in another, decompose both, and compare their vectors."""

    base_source: str
    base: MatrixRef
    tuned_source: str
    tuned: MatrixRef
    versions: tuple[FileVersion, ...] = ()
    """Versions of the files that both are read from."""

    @property
    def name(self) -> str:
        """The tuned matrix: unique within a comparison."""
        return self.tuned.key

    @property
    def cost(self) -> float:
        """Work of both decompositions."""
        return 2.0 * decomposition_cost(self.base.rows, self.base.cols)

    @property
    def memory(self) -> float:
        """That of one decomposition, and the vectors of the other."""
        return matrix_memory(2 * self.base.rows, self.base.cols)

    @property
    def device_memory(self) -> float:
        """Likewise, without the libraries."""
        return 64.0 * self.base.rows * self.base.cols

    @property
    def spreads(self) -> bool:
        """Whether the matrices are large."""
        return spreads(self.base.rows, self.base.cols)

    @property
    def time_limit(self) -> float:
        """Far more than the decompositions take."""
        return decomposition_limit(self.cost)

    def run(self, context: Context) -> PairResult:
        """Compare the pair."""
        started = time.perf_counter()
        with context.stage("read"):
            base = self._read(context, self.base_source, self.base)
            tuned = self._read(context, self.tuned_source, self.tuned)
        with context.computing(), context.stage("decompose"):
            return dataclasses.replace(compare_pair(base, tuned), seconds=time.perf_counter() - started)

    def _read(self, context: Context, source: str, ref: MatrixRef) -> torch.Tensor:
        matrix = read_matrix(source, ref, self.versions)
        dense = matrix.left.double() @ matrix.right.double() if isinstance(matrix, LowRank) else matrix
        context.count_bytes(bytes_of([ref]))
        return dense.to(context.device)


def compare_pair(base: torch.Tensor, tuned: torch.Tensor) -> PairResult:
    """Compare two (m, n) matrices: change, overlaps of their singular vectors, subspaces by decile.

    Raises:
        ValueError: NaN or infinite entries.
        DecompositionError: the decomposition of a matrix failed.
    """
    change = pairs.weight_change(base, tuned)
    before = decompose(base)
    after = before if change.identical else decompose(tuned)
    rank_before, rank_after = _rank(before), _rank(after)
    columns: dict[str, object] = {
        "k": pa.array(range(len(after.singular_values)), pa.int32()),
        "singular_value_base": before.singular_values.cpu().numpy(),
        "singular_value_tuned": after.singular_values.cpu().numpy(),
    }
    # A decile that contains vectors of numerically zero values is not a subspace of the matrix.
    known = min(rank_before, rank_after)
    sound = {decile for decile, ranks in pairs.decile_ranks(len(after.singular_values)) if ranks.stop <= known}
    intruders = 0
    subspaces: list[dict[str, object]] = []
    for side, old, new in (("u", before.left, after.left), ("v", before.right, after.right)):
        # Vectors of numerically zero values are arbitrary: they have no overlap.
        found = pairs.best_overlaps(old[:rank_before], new[:rank_after]) if rank_before and rank_after else None
        overlap = [] if found is None else found.overlap.tolist()
        match = [] if found is None else found.match.tolist()
        columns[f"{side}_overlap"] = pa.array(overlap + [None] * (len(new) - len(overlap)), pa.float32())
        columns[f"{side}_match"] = pa.array(match + [None] * (len(new) - len(match)), pa.int32())
        if side == "u" and found is not None:
            intruders = pairs.intruders(found)
        subspaces += [
            {"side": side, "decile": decile} | dataclasses.asdict(angles)
            for decile, angles in (pairs.decile_subspaces(old, new) if sound else ())
            if decile in sound
        ]
    return PairResult(
        change=change,
        intruders=intruders,
        vectors=pack(pa.table(columns)),
        subspaces=pack(pa.Table.from_pylist(subspaces)),
    )


def _rank(parts: Decomposition) -> int:
    return numerical_rank(parts.singular_values.cpu().numpy(), parts.left.shape[1], parts.right.shape[1])


class ComparisonWork(Work):
    """One comparison: the pairs of matrices, and what to do with each result."""

    kind = "compare"
    mixes = True
    unit = "pairs"

    def __init__(self, store: Store, method: Method, base: Checkpoint, tuned: Checkpoint, *, force: bool) -> None:
        """Match the matrices; raises CheckpointError if both checkpoints are the same or have no matrix in common."""
        self.store, self.base, self.tuned, self.force = store, base, tuned, force
        self.delta = difference(base, tuned)
        self.inventories = {
            side: list_matrices(checkpoint, method.selection.without_products(), compare_bytes=False)
            for side, checkpoint in (("base", base), ("tuned", tuned))
        }
        self.matching = self._matched()
        if not self.matching.pairs:
            raise CheckpointError(_nothing_in_common(base, tuned, self.matching.different_shape))
        self.scan_ids = {
            "base": scan_id(base.identity, method),
            "tuned": scan_id(tuned.identity, method),
            "delta": scan_id(self.delta.identity, method),
        }
        self.method = {"version": COMPARISON_VERSION} | method.as_dict()
        text = json.dumps([COMPARISON_VERSION, self.scan_ids["base"], self.scan_ids["tuned"]])
        self.batch = store.comparison(hashlib.sha256(text.encode()).hexdigest()[:16], method=self.method)
        self.environment: dict[str, Any] = {}
        self.failures: dict[str, str] = {}  # key of a tuned matrix without rows -> reason
        self.started_at = datetime.now(UTC)
        self._matrix_rows: dict[str, dict[Key, dict[str, object]]] | None = None
        self._p_values: dict[str, dict[Key, pa.Table]] = {}

    @property
    def names(self) -> list[str]:
        """Base and tuned model."""
        return [self.base.model, self.tuned.model]

    def tasks(self) -> list[Task]:
        """Pairs without a result, or, if copies of matrices must be found first, the tasks that find them."""
        if self.force:
            self.batch.discard()
        ties = [
            TieTask(owner=side, checks=inventory.tie_checks, versions=self.delta.versions)
            for side, inventory in self.inventories.items()
            if inventory.tie_checks
        ]
        waiting = self._waiting()
        return [*ties, *(task for task in self._pair_tasks() if task.name not in waiting)]

    def _waiting(self) -> set[str]:
        """Keys of the tuned matrices of pairs in which one side may be a copy of another matrix."""
        candidates = {
            side: {ref.key for check in inventory.tie_checks for ref in check.candidates}
            for side, inventory in self.inventories.items()
        }
        return {
            tuned.key
            for base, tuned in self.matching.pairs
            if base.key in candidates["base"] or tuned.key in candidates["tuned"]
        }

    def expected(self, tasks: Sequence[Task]) -> tuple[int, float]:
        """Count the pairs, including those that follow."""
        return super().expected(self._pair_tasks())

    def _matched(self) -> Matching:
        return match_matrices(self.inventories["base"].matrices, self.inventories["tuned"].matrices)

    def _pair_tasks(self) -> list[PairTask]:
        """Return the pairs without a result, largest first."""
        staged = self.batch.staged([tuned.key for _, tuned in self.matching.pairs])
        found = largest_first(
            PairTask(
                base_source=self.base.source,
                base=base,
                tuned_source=self.tuned.source,
                tuned=tuned,
                versions=(
                    *versions_read(self.base.source, [base], self.base.versions),
                    *versions_read(self.tuned.source, [tuned], self.tuned.versions),
                ),
            )
            for base, tuned in self.matching.pairs
            if tuned.key not in staged
        )
        self.kept = len(self.matching.pairs) - len(found)
        return found

    def started(self, environment: dict[str, Any]) -> None:
        """Keep the description of the workers for the committed row."""
        self.environment = environment

    def done(self, task: Task, value: Any) -> Stored:
        """Stage the rows of a pair, completed with columns from the scans of its matrices."""
        if isinstance(task, TieTask):
            waiting = self._waiting()
            self.inventories[task.owner] = self.inventories[task.owner].without(value)
            self.matching = self._matched()
            free = waiting - self._waiting()
            return Stored(following=tuple(pair for pair in self._pair_tasks() if pair.name in free))
        assert isinstance(task, PairTask)
        lacking = [name for name in ("base", "tuned") if _key_of(task, name) not in self._rows[name]]
        if lacking:
            self.failures[task.name] = f"its scan in the {lacking[0]} checkpoint failed"
            return Stored(failed=(_named(task.tuned),))
        self.batch.stage(task.name, self._tables(task, value))
        return Stored()

    def failed(self, task: Task, failure: Failure) -> Stored:
        """Keep the reason why a pair has no rows."""
        if failure.changed:
            self._changed(failure.message)
        if isinstance(task, TieTask):
            raise CheckpointError(failure.message)
        assert isinstance(task, PairTask)
        self.failures[task.name] = failure.message
        return Stored(failed=(_named(task.tuned),))

    def finish(self) -> None:
        """Merge the pairs into one file per table and commit them."""
        self._commit()

    @property
    def _rows(self) -> dict[str, dict[Key, dict[str, object]]]:
        """Rows of `matrices` of each scan, by matrix; read once, after the scans."""
        if self._matrix_rows is None:
            self._matrix_rows = {
                name: {_key(row): row for row in self.store.file_rows("matrices", scan)}
                for name, scan in self.scan_ids.items()
            }
        return self._matrix_rows

    def _tables(self, task: PairTask, result: PairResult) -> dict[str, pa.Table]:
        """Return the rows of one pair, with the columns that come from the scans of its matrices."""
        change = result.change
        place: dict[str, object] = {"pair_id": self.batch.batch_id, "base_tensor": task.base.tensor}
        place |= {name: getattr(task.tuned, name) for name in _PLACE}
        rows = {name: self._rows[name].get(_key_of(task, name), {}) for name in self._rows}
        pair = place | {
            "base_scan_id": self.scan_ids["base"],
            "tuned_scan_id": self.scan_ids["tuned"],
            "base_model": self.base.model,
            "tuned_model": self.tuned.model,
            "tuned_tensor": task.tuned.tensor,
            "relative_change": change.relative,
            "cosine": None if math.isnan(change.cosine) else change.cosine,
            "identical": change.identical,
            "intruders": result.intruders,
            "seconds": result.seconds,
        }
        pair |= {f"{name}_{side}": rows[side][name] for name in _COUNTED for side in ("base", "tuned")}
        pair |= {f"delta_{name}": rows["delta"].get(name) for name in _OF_DELTA}
        vectors = unpack(result.vectors)
        for side in ("base", "tuned"):
            p_values = self._p_of(side)[_key_of(task, side)]
            for name in ("u_p", "v_p"):
                vectors = vectors.append_column(f"{name}_{side}", _padded(p_values[name], vectors.num_rows))
        return {
            "pairs": pa.Table.from_pylist([pair], schema=SCHEMAS["pairs"]),
            "pair_vectors": _placed("pair_vectors", place, vectors),
            "pair_subspaces": _placed("pair_subspaces", place, unpack(result.subspaces)),
        }

    def _p_of(self, side: str) -> dict[Key, pa.Table]:
        """Return the p-values of one scan by matrix, k ascending; read once."""
        if side not in self._p_values:
            table = self.store.vector_rows(self.scan_ids[side], _VECTOR_COLUMNS)
            self._p_values[side] = {key: rows.sort_by("k") for key, rows in _by_matrix(table)}
        return self._p_values[side]

    def _changed(self, reason: str) -> NoReturn:
        """End the run; no pair counts, because each may have been read from the changed file."""
        self.batch.discard()
        raise ChangedError(reason)

    def _commit(self) -> None:
        try:
            check_unchanged(self.delta.versions)
        except ChangedError as error:
            self._changed(str(error))
        keys = [tuned.key for _, tuned in self.matching.pairs if tuned.key not in self.failures]
        unmatched, failed = self._unmatched(), self._failures()
        finished_at = datetime.now(UTC)
        row = {
            "pair_id": self.batch.batch_id,
            "base_scan_id": self.scan_ids["base"],
            "tuned_scan_id": self.scan_ids["tuned"],
            "delta_scan_id": self.scan_ids["delta"],
            "base_model": self.base.model,
            "tuned_model": self.tuned.model,
            "started_at": self.started_at,
            "finished_at": finished_at,
            "seconds": (finished_at - self.started_at).total_seconds(),
            "matrices": len(keys),
            "unmatched": sum(len(names) for names in unmatched.values()),
            "failed": len(failed),
            "unmatched_tensors": json.dumps(unmatched | {_FAILED: failed}),
            "scanner_version": __version__,
            "method": json.dumps(self.method),
            "environment": json.dumps(self.environment),
        }
        self.batch.commit(keys, lambda tables: row | {"identical": sum(tables["pairs"]["identical"].to_pylist())})

    def report(self, *, new: bool) -> ComparisonReport:
        """Read the report of this comparison from the store; called after the commit."""
        [row] = self.store.file_rows("comparisons", self.batch.batch_id)
        compared = self.store.file_rows("pairs", self.batch.batch_id)
        unmatched = lists_of_text(row["unmatched_tensors"])
        changes = [(float(str(pair["relative_change"])), _where(pair)) for pair in compared]
        largest, where = max(changes, key=lambda change: change[0], default=(None, ""))
        return ComparisonReport(
            store=self.store.url,
            pair_id=self.batch.batch_id,
            base_model=self.base.model,
            tuned_model=self.tuned.model,
            matrices=len(compared),
            identical=tuple(str(pair["tuned_tensor"]) for pair in compared if pair["identical"]),
            failed=tuple(unmatched.pop(_FAILED, [])),
            unmatched=unmatched,
            new=new,
            heads=bool(self.method["heads"]),
            change_median=statistics.median(change for change, _ in changes) if changes else None,
            change_largest=largest,
            largest_in=where,
        )

    def _failures(self) -> list[str]:
        """Describe matrices that could not be compared or whose difference has no rows, in the order of the model."""
        reasons = {str(row["tensor"]): row for row in self.store.file_rows("failures", self.scan_ids["delta"])}
        found = []
        for _, tuned in self.matching.pairs:
            why = self.failures.get(tuned.key)
            if why is None and tuned.identity not in self._rows["delta"]:
                failure = reasons.get(tuned.tensor, {"error": "not scanned", "message": "no row"})
                why = f"its difference was not analyzed: {failure['error']}: {failure['message']}"
            if why is not None:
                found.append(f"{_named(tuned)}: {why}")
        return found

    def _unmatched(self) -> dict[str, list[str]]:
        matching = self.matching
        found = {
            f"only in base ({self.base.model})": [_named(ref) for ref in matching.only_base],
            f"only in tuned ({self.tuned.model})": [_named(ref) for ref in matching.only_tuned],
            "of another shape": [
                f"{_named(new)} ({old.rows}x{old.cols} became {new.rows}x{new.cols})"
                for old, new in matching.different_shape
            ],
        }
        return {reason: names for reason, names in found.items() if names}


def _key(row: dict[str, object]) -> Key:
    return tuple(row[name] for name in MATRIX_KEY)


def _key_of(task: PairTask, name: str) -> Key:
    return (task.base if name == "base" else task.tuned).identity  # a difference has the name of the tuned matrix


def _where(pair: Mapping[str, object]) -> str:
    """Describe the place of a pair, for example `layer 5, mlp_down`; outside of blocks the name of the tensor."""
    place = [f"layer {pair['layer']}", str(pair["role"])] if pair["layer"] is not None else [str(pair["tuned_tensor"])]
    stack = [str(pair["stack"])] if pair["stack"] is not None else []
    return ", ".join(
        [*stack, *place, *(f"{name} {pair[name]}" for name in ("head", "expert") if pair[name] is not None)]
    )


def _named(ref: MatrixRef) -> str:
    """Describe a matrix by its tensor and its part of the tensor, for example `qkv.weight (query, head 3)`."""
    words = [ref.role] if ref.row_pattern is not None or ref.head is not None else []
    words += [f"{name} {index}" for name, index in (("head", ref.head), ("expert", ref.expert)) if index is not None]
    return f"{ref.tensor} ({', '.join(words)})" if words else ref.tensor


def _by_matrix(vectors: pa.Table) -> Iterator[tuple[Key, pa.Table]]:
    """Yield the rows of each matrix; in the file of a scan they are consecutive and sorted by k."""
    starts = [*np.flatnonzero(vectors["k"].to_numpy() == 0).tolist(), vectors.num_rows]
    for start, stop in itertools.pairwise(starts):
        rows = vectors.slice(start, stop - start)
        yield _key({name: rows[name][0].as_py() for name in MATRIX_KEY}), rows


def _placed(table: str, place: dict[str, object], found: pa.Table) -> pa.Table:
    """Return rows with the columns that identify the pair."""
    names = SCHEMAS[table].names
    columns = {name: value for name, value in place.items() if name in names}
    return rows(table, columns | {name: found[name] for name in found.column_names}, found.num_rows)


def _padded(column: pa.ChunkedArray, length: int) -> pa.ChunkedArray:
    """Append nulls for the triplets that a scan of a low-rank matrix does not have."""
    return pa.chunked_array([*column.chunks, pa.nulls(length - len(column), column.type)])


def _nothing_in_common(base: Checkpoint, tuned: Checkpoint, different: Sequence[tuple[MatrixRef, MatrixRef]]) -> str:
    reason = "they have no matrices at the same position"
    if different:
        old, new = different[0]
        reason = (
            f"the {len(different)} matrices at the same position differ in shape "
            f"({printable(new.tensor)}: {old.rows}x{old.cols} and {new.rows}x{new.cols})"
        )
    return f"{printable(base.model)} and {printable(tuned.model)} have nothing in common: {reason}; give a model and its fine-tune"


class _Callable(ModuleType):
    """Makes the module callable, because `from scanner.engine import compare` finds the module and not its function."""

    def __call__(self, *arguments: Any, **options: Any) -> ComparisonReport:
        return compare(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
