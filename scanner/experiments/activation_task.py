"""The actor of `rmtscan activations`: sums over what enters the matrices of some blocks, and what the sums say of them.

A task is some blocks of the model and one shard of the text. Where the text is one shard, its actor keeps the sums to itself: a
covariance is n x n in float64 (134 MB at n = 4096), there are four in a block, and only eigenvalues and overlaps come back. Of a
longer text the sums of each shard come back and are added in the order of the text (`Sums.add`); then one more task of the blocks,
which carries the totals, compares them with the singular vectors. Shards are cut by the text alone and added in one order, so the
result is the same bit for bit, however many actors there are and however often the run was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from scanner.checkpoint import MatrixRef
from scanner.errors import ScannerError
from scanner.experiments.activations import Eigensystem, Moments, Recorder, eigensystem, overlaps
from scanner.experiments.models import ModelPlace, Precision
from scanner.experiments.placing import Placed, place_matrices
from scanner.experiments.running import Failure, Resident, one_line, pack, rows_table
from scanner.experiments.tokens import BATCH_TOKENS, Batch, Batches, Sequences
from scanner.rmt import metrics
from scanner.rmt.decomposition import decompose
from scanner.rmt.marchenko_pastur import singular_value_edges
from scanner.rmt.sigma import sigma_median


@dataclass(kw_only=True)
class Sums:
    """What a shard of the text tells of the inputs of some modules; modules that read the same tensor share one sum."""

    moments: dict[str, Moments]
    """By the module that stands for its group."""
    shared: dict[str, str]
    """Every module to the one that stands for it."""
    unusable: dict[str, str]
    """Modules whose input is not one state for each token, and why."""
    shards: int = 1
    """How many shards, from the text's first on, are in the sums."""

    def to(self, device: Any) -> Sums:
        """The same on another device: on the CPU they can travel."""
        moved = {name: moments.to(device) for name, moments in self.moments.items()}
        return replace(self, moments=moved)

    def add(self, other: Sums) -> None:
        """Add the sums of the next shard.

        Raises:
            ScannerError: modules shared an input in one shard and not in the other.
        """
        if other.shared != self.shared:
            raise ScannerError("which matrices read the same input differs between shards of the text")
        self.unusable |= other.unusable
        self.shards += other.shards
        for name, moments in other.moments.items():
            if name in self.moments:
                self.moments[name].merge(moments)
            else:
                self.moments[name] = moments

    def packed(self) -> bytes:
        """The same as bytes (safetensors), which `unpacked` reads."""
        tensors: dict[str, torch.Tensor] = {}
        for name, moments in self.moments.items():
            tensors |= {f"first {name}": moments.first, f"second {name}": moments.second.contiguous()}
        counts = {name: moments.count for name, moments in self.moments.items()}
        told = {"counts": counts, "shared": self.shared, "unusable": self.unusable, "shards": self.shards}
        return save(tensors, metadata={"sums": json.dumps(told)})

    @classmethod
    def unpacked(cls, content: bytes) -> Sums | None:
        """The sums that became these bytes; None if these are something else."""
        try:
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            told = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["sums"])
            moments = {
                name: Moments(count=count, first=tensors[f"first {name}"], second=tensors[f"second {name}"])
                for name, count in told["counts"].items()
            }
            return cls(moments=moments, shared=told["shared"], unusable=told["unusable"], shards=told["shards"])
        except (SafetensorError, ValueError, KeyError):
            return None


@dataclass(frozen=True, kw_only=True)
class ActivationTask:
    """Measure the inputs of all matrices of some neighbouring blocks on one shard of the text, or compare what all shards gave."""

    run_id: str
    place: ModelPlace
    config: Any
    """The model's configuration as transformers has it: of some formats it takes long to be read."""
    dtype: Precision
    blocks: tuple[tuple[str, tuple[MatrixRef, ...]], ...]
    """Name of the block's file, and its matrices."""
    text: Sequences
    """The shard."""
    padding: int
    cost: float
    shard: int = 0
    shards: int = 1
    sums: Sums | None = None
    """Of all shards: nothing is measured any more, and the matrices are compared with them."""

    @property
    def name(self) -> str:
        """The run, the first of its blocks and the shard."""
        block = f"{self.run_id}/{self.blocks[0][0]}"
        if self.sums is not None or self.shards == 1:
            return block
        return f"{block} (shard {self.shard + 1} of {self.shards})"


@dataclass(frozen=True, kw_only=True)
class BlockRows:
    """The rows of one block, packed; the columns that say which run they belong to are filled in by the driver."""

    overlaps: bytes
    spectra: bytes
    skipped: dict[str, str]
    """Its matrices without rows, and why."""


@dataclass(frozen=True, kw_only=True)
class ActivationOutcome:
    """What came of a task: rows by block or the shard's sums, and how far batches were cut down."""

    blocks: dict[str, BlockRows] = field(default_factory=dict)
    sums: Sums | None = None
    batch_tokens: int | None = None
    failure: Failure | None = None


class ActivationWorker(Resident):
    """An actor with one replica of the model."""

    def run(self, task: ActivationTask) -> ActivationOutcome:
        """Carry out a task; errors are outcomes."""
        with self.computing():
            try:
                model = self.model(task.place, "own", task.dtype, task.config)
            except Exception as error:  # nothing escapes an actor: Ray's traceback would take the place of the line
                return ActivationOutcome(failure=Failure(message=one_line(error), hopeless=True))
            batches = Batches(task.padding, BATCH_TOKENS[self._device])
            try:
                return measure(model, task, batches)
            except Exception as error:  # whatever a block does, the others go on, and a line says what it was
                return ActivationOutcome(failure=Failure(message=one_line(error)))


def measure(model: Any, task: ActivationTask, batches: Batches) -> ActivationOutcome:
    """Carry out a task on a model: a pure function of both."""
    modules, placed, skipped = _modules(model, task)
    if task.sums is not None:
        return ActivationOutcome(blocks=compare(model, task, placed, task.sums.to(model.device), skipped))
    sums = accumulate(model, task.text, modules, batches)
    if task.shards > 1:
        return ActivationOutcome(sums=sums.to("cpu"), batch_tokens=batches.smallest)
    blocks = compare(model, task, placed, sums, skipped)
    return ActivationOutcome(blocks=blocks, batch_tokens=batches.smallest)


def _modules(model: Any, task: ActivationTask) -> tuple[dict[str, torch.nn.Module], dict[str, Placed], dict[str, str]]:
    """Modules whose inputs are measured; where the matrices are that they hold, by key; name and reason of the others."""
    refs = [ref for _, of_block in task.blocks for ref in of_block]
    placed, skipped = place_matrices(model, refs)
    modules: dict[str, torch.nn.Module] = {}
    kept: dict[str, Placed] = {}
    for one in placed:
        module = model.get_submodule(one.module)
        if one.index is not None or getattr(module, "weight", None) is None or module.weight.ndim != 2:
            skipped[one.ref.tensor] = "it is not the weight of a linear layer of its own: no hook sees its input"
        else:
            modules[one.module] = module
            kept[one.ref.key] = one
    return modules, kept, skipped


def accumulate(model: Any, text: Sequences, modules: dict[str, torch.nn.Module], batches: Batches) -> Sums:
    """Run sequences through the model as far as the last of the modules, and sum over what enters these, padding left out."""
    recorder = Recorder(modules=modules)

    def compute(batch: Batch, indices: list[int]) -> None:
        recorder.forward(model, batch.inputs(model, decoder=True))

    if modules:
        with recorder:
            batches.of(model).run(text, compute)
    return Sums(moments=recorder.moments, shared=recorder.shared, unusable=recorder.unusable)


def compare(
    model: Any, task: ActivationTask, placed: dict[str, Placed], sums: Sums, skipped: dict[str, str]
) -> dict[str, BlockRows]:
    """Compare singular vectors with the sums' eigenvectors: rows by block. `skipped` says why matrices are not in `placed`."""
    eigen: dict[tuple[str, bool], Eigensystem] = {}
    found: dict[str, BlockRows] = {}
    for name, of_block in task.blocks:
        eigen.clear()  # those of the block before are not needed any more
        tables: list[tuple[pa.Table, pa.Table]] = []
        without: dict[str, str] = {}
        for ref in of_block:
            at = placed.get(ref.key)
            if at is None:
                without[ref.tensor] = skipped[ref.tensor]
                continue
            group = sums.shared.get(at.module, at.module)
            moments = sums.moments.get(group)
            # Of a module that could not be read in every batch the sums are those of some chosen by their padding.
            if group in sums.unusable or moments is None or moments.count == 0:
                without[ref.tensor] = sums.unusable.get(group, "no token reached it")
                continue
            tables += _rows(model, at, group, moments, eigen)
        found[name] = BlockRows(
            overlaps=pack(_joined("overlaps", [pair[0] for pair in tables])),
            spectra=pack(_joined("activation_spectra", [pair[1] for pair in tables])),
            skipped=without,
        )
    return found


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
