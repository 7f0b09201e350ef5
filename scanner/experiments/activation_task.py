"""The actor of `rmtscan activations`: measures what enters the matrices of some blocks, on all of the text.

Covariances do not travel. One is n x n in float64 (134 MB at n = 4096), and there are four in a block, so a task is some blocks
of the model and *all* of the text: its actor runs the shards of the text one after the other through its replica, as far as the
last of its blocks, and keeps the sums to itself; only eigenvalues and overlaps come back. That costs forward passes, of which
every task makes its own, and these are the cheaper half: accumulation in float64 takes as long or longer. A matrix's sum is
built by one actor in one order, so the result is the same bit for bit, however many actors there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from scanner.checkpoint import MatrixRef
from scanner.errors import ScannerError
from scanner.experiments.activations import Eigensystem, Moments, Recorder, eigensystem, overlaps
from scanner.experiments.models import ModelPlace, Precision
from scanner.experiments.placing import Placed, place_matrices
from scanner.experiments.running import Failure, Resident, pack, rows_table
from scanner.experiments.tokens import BATCH_TOKENS, Batch, Batches, Ids
from scanner.rmt import metrics
from scanner.rmt.decomposition import decompose
from scanner.rmt.marchenko_pastur import singular_value_edges
from scanner.rmt.sigma import sigma_median


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
