"""Activations: the covariance of the inputs of each matrix, and overlaps of its eigenvectors with the singular vectors.

A task is a group of blocks of the model and one shard of the text. If the text is one shard, the sums stay in the worker: a
covariance is n x n in float64 (134 MB at n = 4096), there are four in a block, and only eigenvalues and overlaps are returned.
With more shards the sums of each are returned and added in the order of the text; one more task of these blocks then compares
the totals with the singular vectors. Shards depend on the text alone and are added in one order, so the result is the same bit
for bit, for any number of workers and interruptions. Totals are staged from time to time, so that the next call resumes from them.

Sources: Staats, Thamm, Rosenow, arXiv 2410.17770, v3 sec. 4 and v1 sec. 5.
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
from typing import TYPE_CHECKING, Any

from scanner.checkpoint import ROLES, Checkpoint, MatrixRef, Selection
from scanner.configuration import option
from scanner.configuration import parameters as identity_parameters
from scanner.engine.task import Context, Task, fatal_errors
from scanner.engine.work import Stored
from scanner.errors import ConfigError, ScannerError
from scanner.experiments.experiment import Call, Experiment, ExperimentWork, Report, register_experiment, run_hash
from scanner.experiments.nlp.options import DEFAULT_WINDOW, ModelOptions, Precision, TextOptions

if TYPE_CHECKING:
    import pyarrow as pa

    from scanner.engine import PoolOptions
    from scanner.experiments.nlp.models import ModelPlace
    from scanner.experiments.nlp.placing import Placed
    from scanner.experiments.nlp.recording import Eigensystem, Moments, Sums
    from scanner.experiments.nlp.tokens import Sequences
    from scanner.store import Store

#: Bytes of covariances that one worker may hold at a time, and that may be sent in one piece.
MEMORY, TRANSFERRED = 4 << 30, 1 << 30
#: A longer text is cut into shards of about this number of tokens, which workers share.
SHARD_TOKENS = 16_384
#: Entries of the largest map that is kept: 4096 x 4096.
MAX_MAP = 1 << 24
#: Seconds between two stagings of sums, which may be 1 GiB.
KEPT_EVERY = 30.0
#: Cost of the eigenvectors of a covariance (twice) and of singular vectors, relative to one product of the same size.
_DECOMPOSITION = 10.0
#: Tasks per worker: with more of them an interruption loses less, and more forward passes are repeated.
_TASKS_PER_WORKER = 2
#: Workers to plan for on a cluster of unknown size.
_CLUSTER = 8


@dataclass(frozen=True, kw_only=True)
class Config(TextOptions, ModelOptions):
    """Options of `rmtscan activations`."""

    tokens: int | None = option(16_384, min=1)
    """Read at most this number of tokens; from a table, rows drawn from all of it (from a data set of the Hub, its first rows)."""
    window: int | None = option(None, min=2)
    """Tokens in a sequence; None: 512, or what the model takes."""
    roles: tuple[str, ...] = option(
        (), metavar="ROLE,...", choices=ROLES, aliases=("--only",), identity="only", unordered=True
    )
    """Measure only matrices with these roles; none: all roles."""
    layers: tuple[int, ...] = option((), metavar="0-5,7", min=0, identity="layers", unordered=True)
    """Measure only matrices in these blocks; none: all blocks."""
    dtype: Precision = option("float32")
    """Precision of the weights and activations of the model."""
    sign_draws: int = option(39, min=0, identity="sign_draws", since="0.2", before=0)
    """Draws of random signs, with which the overlap of a localized vector is compared; each costs one product of the size."""
    halves: bool = option(False, identity="halves", since="0.2")
    """Also the overlaps for each half of the sequences, which say how reliable they are; takes twice the memory."""
    map: str | None = option(None, metavar="ROLE:LAYER", identity="map", since="0.2")
    """Also keep the overlap of every singular vector with every eigenvector of this matrix, such as query:3."""


@dataclass(frozen=True, kw_only=True)
class BlockRows:
    """Rows of one block, packed; the driver fills in the columns that identify the run."""

    overlaps: bytes
    spectra: bytes
    maps: bytes
    """Empty unless the map of a matrix of the block was asked for."""
    skipped: dict[str, str]
    """Matrices without rows -> reason."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Result of a task: rows by block, or the sums of the shard, and the size that batches were reduced to."""

    blocks: dict[str, BlockRows] = field(default_factory=dict)
    sums: Sums | None = None
    batch_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ActivationTask(Task):
    """Measure the inputs of all matrices of some neighboring blocks on one shard of the text, or compare the sums of all shards."""

    run_id: str
    place: ModelPlace
    config: Any
    """Configuration of the model as transformers reads it, which is slow for some formats."""
    dtype: Precision
    blocks: tuple[tuple[str, tuple[MatrixRef, ...]], ...]
    """Name of the file of each block, and its matrices."""
    text: Sequences | None
    """The shard."""
    padding: int
    work: float
    shard: int = 0
    shards: int = 1
    sign_draws: int = 0
    """Draws of random signs."""
    halves: bool = False
    """Whether the sums over every other sequence are kept, too."""
    map: str = ""
    """Key of the matrix whose map is kept."""
    sums: Sums | None = None
    """Sums of all shards: they are compared with the matrices, and nothing is measured."""

    @property
    def name(self) -> str:
        """The run, the first of its blocks and the shard."""
        block = f"{self.run_id}/{self.blocks[0][0]}"
        if self.text is None or self.shards == 1:
            return block
        return f"{block} (shard {self.shard + 1} of {self.shards})"

    @property
    def cost(self) -> float:
        """Products of activations, and decompositions."""
        return self.work

    def run(self, context: Context) -> Measured:
        """Measure or compare."""
        from scanner.experiments.nlp.models import resident_model
        from scanner.experiments.nlp.tokens import BATCH_TOKENS, Batches

        with context.computing():
            with fatal_errors():
                model = resident_model(context, self.place, "own", self.dtype, self.config)
            return measure(model, self, Batches(self.padding, BATCH_TOKENS[context.device]))


def measure(model: Any, task: ActivationTask, batches: Any) -> Measured:
    """Run a task on a model: a pure function of both."""
    from scanner.experiments.nlp import recording

    modules, placed, skipped = _modules(model, task)
    if task.sums is not None:
        return Measured(blocks=compare(model, task, placed, task.sums.to(model.device), skipped))
    assert task.text is not None, "only comparisons have no text"
    sums = recording.accumulate(model, task.text, modules, batches, halves=task.halves)
    if task.shards > 1:
        return Measured(sums=sums.to("cpu"), batch_tokens=batches.smallest)
    return Measured(blocks=compare(model, task, placed, sums, skipped), batch_tokens=batches.smallest)


def _modules(model: Any, task: ActivationTask) -> tuple[dict[str, Any], dict[str, Placed], dict[str, str]]:
    """Modules whose inputs are measured; the places of their matrices by key; the other matrices with the reason."""
    from scanner.experiments.nlp.placing import place_matrices

    refs = [ref for _, of_block in task.blocks for ref in of_block]
    placed, skipped = place_matrices(model, refs)
    modules: dict[str, Any] = {}
    kept: dict[str, Placed] = {}
    for one in placed:
        module = model.get_submodule(one.module)
        if one.index is not None or getattr(module, "weight", None) is None or module.weight.ndim != 2:
            skipped[one.ref.tensor] = "it is not the weight of a linear layer of its own: no hook sees its input"
        else:
            modules[one.module] = module
            kept[one.ref.key] = one
    return modules, kept, skipped


def compare(
    model: Any, task: ActivationTask, placed: dict[str, Placed], sums: Sums, skipped: dict[str, str]
) -> dict[str, BlockRows]:
    """Compare singular vectors with eigenvectors of the sums: rows by block. `skipped` says why matrices are not in `placed`."""
    from scanner.store.tables import pack

    eigen: dict[tuple[str, bool], Eigensystem] = {}
    found: dict[str, BlockRows] = {}
    for name, of_block in task.blocks:
        eigen.clear()  # those of the previous block are no longer needed
        tables: list[tuple[pa.Table, pa.Table]] = []
        maps: list[pa.Table] = []
        without: dict[str, str] = {}
        for ref in of_block:
            at = placed.get(ref.key)
            if at is None:
                without[ref.tensor] = skipped[ref.tensor]
                continue
            group = sums.shared.get(at.module, at.module)
            moments = sums.moments.get(group)
            # The sums of a module that could not be read in every batch are biased by the padding of the batches that could.
            if group in sums.unusable or moments is None or moments.count == 0:
                without[ref.tensor] = sums.unusable.get(group, "no token reached it")
                continue
            halves = sums.halves(group)
            tables += _rows(model, at, group, moments, eigen, halves, task.sign_draws)
            if ref.key == task.map:
                maps += _map_rows(model, at, group, moments, eigen)
        found[name] = BlockRows(
            overlaps=pack(_joined("overlaps", [pair[0] for pair in tables])),
            spectra=pack(_joined("activation_spectra", [pair[1] for pair in tables])),
            maps=pack(_joined("overlap_maps", maps)) if maps else b"",
            skipped=without,
        )
    return found


def _joined(name: str, tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    from scanner.store.tables import rows

    return pa.concat_tables([rows(name, {}, 0), *tables])


def _rows(
    model: Any,
    one: Placed,
    group: str,
    moments: Moments,
    eigen: dict[tuple[str, bool], Eigensystem],
    halves: tuple[Moments, Moments] | None,
    draws: int,
) -> list[tuple[pa.Table, pa.Table]]:
    """Rows of `overlaps` and `activation_spectra` of one matrix, centered and not centered.

    `eigen` keeps the eigenvectors for other matrices of the group; those of the halves of the text are kept under longer names.
    """
    import numpy as np

    from scanner.experiments.nlp.recording import eigensystem, overlap_map, overlaps
    from scanner.rmt import metrics
    from scanner.rmt.decomposition import decompose
    from scanner.rmt.marchenko_pastur import singular_value_edges
    from scanner.rmt.sigma import sigma_median

    ref = one.ref
    parts = decompose(one.matrix(model))
    s = parts.singular_values.cpu().numpy()
    lower, upper = singular_value_edges(sigma_median(s, ref.rows, ref.cols), ref.rows, ref.cols)
    region = metrics.regions(s, lower, upper, metrics.numerical_rank(s, ref.rows, ref.cols))
    peak = parts.right.abs().amax(dim=1).cpu().numpy()
    place = _place(ref, moments)
    tables = []
    for centred in (True, False):
        key = (group, centred)
        if key not in eigen:
            eigen[key] = eigensystem(moments.covariance(centred=centred))
        measured = overlaps(parts.right, eigen[key], draws=draws)
        of_halves: dict[str, object] = {}
        for name, half in zip(("overlap_even", "overlap_odd"), halves or (), strict=False):
            key_of_half = (f"{group} {name}", centred)
            if key_of_half not in eigen:
                eigen[key_of_half] = eigensystem(half.covariance(centred=centred))
            of_halves[name] = overlap_map(parts.right, eigen[key_of_half]).amax(dim=1).cpu().numpy()
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
            "importance": s**2 * measured.energy,
            "signs_p": measured.signs_p,
            "signs_median": measured.signs_median,
            "signs_bound": measured.signs_bound,
            **of_halves,
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


def _place(ref: MatrixRef, moments: Moments) -> dict[str, object]:
    return {
        "tensor": ref.tensor,
        "stack": ref.stack,
        "layer": ref.layer,
        "role": ref.role,
        "module": ref.module,
        "cols": ref.cols,
        "tokens": moments.count,
    }


def _map_rows(
    model: Any, one: Placed, group: str, moments: Moments, eigen: dict[tuple[str, bool], Eigensystem]
) -> list[pa.Table]:
    """Rows of `overlap_maps` of one matrix, centered and not centered; `eigen` has the eigenvectors."""
    import numpy as np

    from scanner.experiments.nlp.recording import overlap_map
    from scanner.rmt.decomposition import decompose

    right = decompose(one.matrix(model)).right
    tables = []
    for centred in (True, False):
        values = overlap_map(right, eigen[group, centred]).cpu().numpy()
        count, width = values.shape
        columns: dict[str, object] = {
            "k": np.repeat(np.arange(count, dtype=np.int32), width),
            "j": np.tile(np.arange(width, dtype=np.int32), count),
            "overlap": values.ravel().astype(np.float32),
            "centred": centred,
        }
        tables.append(_placed("overlap_maps", _place(one.ref, moments) | columns, values.size))
    return tables


def _placed(name: str, columns: dict[str, object], length: int) -> pa.Table:
    from scanner.store.tables import rows

    # The driver fills in the run and the model, which are required columns.
    return rows(name, {"run_id": "", "model": ""} | columns, length)


class ActivationWork(ExperimentWork):
    """A run: each group of blocks is written when it is measured, and the row of the run when none is missing."""

    kind = "activations"
    unit = "groups of blocks"

    def __init__(
        self,
        store: Store,
        *,
        checkpoint: Checkpoint,
        parameters: dict[str, object],
        dataset: str,
        tokens: int,
        refs: Sequence[MatrixRef],
        base: dict[str, Any],
        workers: int,
        force: bool,
    ) -> None:
        super().__init__(store, force=force)
        self.checkpoint, self.parameters, self.dataset, self.tokens = checkpoint, parameters, dataset, tokens
        self.versions = checkpoint.versions
        self.refs, self.workers = refs, workers
        self.run_id = run_hash(self.kind, checkpoint.identity, parameters)
        self.base = ActivationTask(run_id=self.run_id, blocks=(), work=0.0, **base)
        self.blocks = _blocks(refs, self.run_id)
        self.skipped: dict[str, str] = {}
        self.batch_tokens: int | None = None
        self._totals: dict[str, Sums] = {}
        self._kept_at = time.monotonic()
        self._waiting: dict[str, dict[int, Sums]] = {}
        self._shared = {"run_id": self.run_id, "model": checkpoint.model, "revision": checkpoint.revision}

    @property
    def names(self) -> list[str]:
        """The model."""
        return [self.checkpoint.model]

    def tasks(self) -> list[ActivationTask]:
        """Groups of blocks without rows."""
        if self.force:
            self.store.unstage(self.run_id)
        todo = {name: refs for name, refs in self.blocks.items() if not self.has("overlaps", name)}
        self.kept = len(self.blocks) - len(todo)
        self._recall(name for name in self.blocks if name not in todo)
        return self._remaining(_tasks(self.base, todo, self.workers)) if todo else []

    def expected(self, tasks: Sequence[Task]) -> tuple[int, float]:
        """The tasks, and the comparison that follows the last of several shards."""
        following = [
            _comparison(task, None)
            for task in tasks
            if isinstance(task, ActivationTask) and task.text is not None and 1 < task.shards == task.shard + 1
        ]
        return super().expected([*tasks, *following])

    def done(self, task: Task, value: Measured) -> Stored:
        """Write the blocks of a task, or add its sums; the last shard of some blocks is followed by their comparison."""
        assert isinstance(task, ActivationTask)
        if value.batch_tokens is not None:
            self.batch_tokens = min(value.batch_tokens, self.batch_tokens or value.batch_tokens)
        for name, block in value.blocks.items():
            self._write(name, block)
        if task.sums is not None and value.blocks:
            self.store.unstage(self.run_id, _group_name(task))
        return Stored(following=() if value.sums is None else tuple(self._add(task, value.sums)))

    def finish(self) -> None:
        """Write the row of the run, unless blocks are missing or it is there."""
        if self.failures or self.has("experiments", self.run_id):
            return
        self.write_run(
            self.run_id,
            self.parameters,
            **self._shared,
            kind=self.kind,
            source=self.checkpoint.source,
            dataset=self.dataset,
            seconds=self.elapsed,
            tokens=self.tokens,
            batch_tokens=self.batch_tokens,
        )
        self.store.unstage(self.run_id)

    def report(self) -> Report:
        """Describe the run."""
        widest = max(ref.cols for ref in self.refs)
        warning = (
            f"{self.tokens} tokens are fewer than the {widest} features of the widest matrix: its covariance is rank-deficient"
            if self.tokens <= widest
            else None
        )
        notes = [f"skipped {tensor}: {why}" for tensor, why in sorted(self.skipped.items())]
        notes += [f"warning: {warning}"] if warning else []
        notes.append(f"{len(self.refs) - len(self.skipped)} matrices, {self.tokens:,} tokens")
        return Report(
            store=self.store.url,
            run_ids=(self.run_id,),
            unit="blocks",
            total=len(self.blocks),
            kept=self.kept,
            failed=self.failures,
            model=self.checkpoint.model,
            revision=self.checkpoint.revision,
            facts={
                "tokens": self.tokens,
                "matrices": len(self.refs),
                "skipped": self.skipped,
                "warning": warning,
            },
            notes=tuple(notes),
            parameters={"run": self.run_id},
        )

    def _write(self, name: str, block: BlockRows) -> None:
        """Write what was skipped, then the rows; those of `overlaps`, which say that the block is complete, last."""
        from scanner.store.tables import rows, unpack

        self.skipped |= block.skipped
        if block.skipped:
            columns: dict[str, object] = {"tensor": [*block.skipped], "reason": [*block.skipped.values()]}
            shared = {name: self._shared[name] for name in ("run_id", "model")}
            table = rows("run_skips", shared | columns, len(block.skipped))
            self.store.write_rows("run_skips", name, table, method=self.parameters)
        tables = (("overlap_maps", block.maps), ("activation_spectra", block.spectra), ("overlaps", block.overlaps))
        for table_name, packed in tables:
            if not packed:
                continue
            self.store.write_rows(table_name, name, _with(unpack(packed), self._shared), method=self.parameters)

    def _recall(self, blocks: Iterable[str]) -> None:
        """Read what was skipped in blocks of earlier calls. Until version 0.1.0 it was in the metadata of their files."""
        for name in blocks:
            self.skipped |= {str(row["tensor"]): str(row["reason"]) for row in self.store.file_rows("run_skips", name)}
            self.skipped |= self.store.method_of("overlaps", name).get("skipped", {})

    def _remaining(self, tasks: Sequence[ActivationTask]) -> list[ActivationTask]:
        """The tasks without shards whose sums an earlier call has staged; if these are all shards, the comparison is left."""
        from scanner.experiments.nlp.recording import Sums

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


def plan(config: Config, call: Call) -> ActivationWork:
    """Read the text, and list the blocks whose inputs are measured.

    Raises:
        ScannerError: a text, model, role or layer that is not suitable; the message says why.
    """
    from scanner.experiments.nlp.models import load_config, load_tokenizer, longest_input, model_place
    from scanner.experiments.nlp.placing import open_target
    from scanner.experiments.nlp.texts import read_texts
    from scanner.experiments.nlp.tokens import padding_id, sequences

    selection = Selection(only=config.roles, layers=config.layers)
    call.observer.opening(config.model)
    target = open_target(config.model, selection)
    place = model_place(target.checkpoint)
    model_config, tokenizer = load_config(place), load_tokenizer(place)
    length = min(config.window or DEFAULT_WINDOW, longest_input(model_config, tokenizer))
    if config.tokens is not None:
        length = min(length, max(1, config.tokens))
    texts = read_texts(config.source(), tokens=config.tokens, length=length)
    read = sequences(tokenizer, texts, length=length, tokens=config.tokens)
    if not read:
        raise ScannerError(f"text {texts.name} has no tokens")
    parameters: dict[str, object] = {
        "text": texts.digest,
        "ids": read.digest,
        "tokens": config.tokens,
        "window": length,
        "dtype": config.dtype,
    }
    if config.halves and len(read.ids) < 2:
        raise ScannerError(f"`halves` needs at least two sequences, and {texts.name} has one of {read.tokens} tokens")
    base = {
        "sign_draws": config.sign_draws,
        "halves": config.halves,
        "map": _mapped(config.map, target.inventory.matrices),
        "place": place,
        "config": model_config,
        "dtype": config.dtype,
        "text": read,
        "padding": padding_id(tokenizer, model_config),
    }
    return ActivationWork(
        call.open_store(),
        force=call.force,
        checkpoint=target.checkpoint,
        parameters=parameters | identity_parameters(config),
        dataset=texts.name,
        tokens=read.tokens,
        refs=target.inventory.matrices,
        base=base,
        workers=_planned_workers(call.pool),
    )


def _mapped(wanted: str | None, refs: Sequence[MatrixRef]) -> str:
    """Return the key of the matrix `ROLE:LAYER` whose map is kept: the first of its role in the block; empty for None.

    Raises:
        ScannerError: there is no such matrix, or its map has too many rows.
    """
    if wanted is None:
        return ""
    role, _, layer = wanted.partition(":")
    found = [ref for ref in refs if ref.role == role and str(ref.layer) == layer]
    if not found:
        raise ConfigError("map", f"is {wanted!r}: name a measured matrix as ROLE:LAYER, such as query:0")
    chosen = min(found, key=lambda ref: (ref.module or "", ref.stack or "", ref.expert or 0))
    entries = min(chosen.rows, chosen.cols) * chosen.cols
    if entries > MAX_MAP:
        raise ConfigError(
            "map", f"names a {chosen.rows} x {chosen.cols} matrix, whose map has more than {MAX_MAP} entries"
        )
    return chosen.key


def _with(rows: pa.Table, columns: dict[str, str]) -> pa.Table:
    import pyarrow as pa

    for name, value in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.repeat(pa.scalar(value), rows.num_rows))
    return rows


def _group_name(task: ActivationTask) -> str:
    """16 hexadecimal digits that identify the blocks that are measured together, and how the text is cut."""
    text = json.dumps([[name for name, _ in task.blocks], task.shards])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _blocks(refs: Sequence[MatrixRef], run_id: str) -> dict[str, tuple[MatrixRef, ...]]:
    """Matrices by the name of the file of their block, in the order of the data flow; matrices outside of blocks come first."""
    found: dict[str, list[MatrixRef]] = {}
    for ref in sorted(
        refs, key=lambda ref: (ref.stack != "encoder", ref.stack or "", -1 if ref.layer is None else ref.layer)
    ):
        where = "outside" if ref.layer is None else f"{ref.layer:05d}"
        found.setdefault("-".join(filter(None, [run_id, ref.stack, where])), []).append(ref)
    return {name: tuple(of_block) for name, of_block in found.items()}


def _planned_workers(options: PoolOptions) -> int:
    import torch

    from scanner.engine.pool import PoolShape

    if options.workers is not None:
        return options.workers
    if options.address or os.environ.get("RAY_ADDRESS"):
        return _CLUSTER
    here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return PoolShape.fit(options, here, tasks=sys.maxsize).workers


def _shards(text: Sequences) -> list[Sequences]:
    """Consecutive sequences of at most `SHARD_TOKENS` together; depends on the text alone."""
    found: list[list[int]] = [[]]
    held = 0
    for index, one in enumerate(text.ids):
        if found[-1] and held + len(one) > SHARD_TOKENS:
            found.append([])
            held = 0
        found[-1].append(index)
        held += len(one)
    return [text.part(shard) for shard in found]


#: Roles that usually read the same states of their block; the forward pass shows which really do.
_SHARED = {"query": "attention", "key": "attention", "value": "attention", "mlp_up": "mlp", "mlp_gate": "mlp"}


def _input(ref: MatrixRef) -> tuple[object, ...]:
    """Equal for matrices that are expected to share a covariance."""
    where = (ref.stack, ref.layer, ref.module, ref.expert)
    return (*where, _SHARED.get(ref.role, ref.tensor), ref.cols)


def _groups(
    blocks: dict[str, tuple[MatrixRef, ...]], shards: int, workers: int, *, halves: bool = False
) -> list[tuple[tuple[str, tuple[MatrixRef, ...]], ...]]:
    """Neighboring blocks whose covariances fit into memory together; a block that alone does not fit is a group of its own.

    If there is only one shard, the workers share the blocks, in groups of about equal size.
    """
    copies = 2 if halves else 1
    size = {
        name: 8 * copies * sum({_input(ref): ref.cols**2 for ref in refs}.values()) for name, refs in blocks.items()
    }
    share = sum(size.values()) / min(len(blocks), _TASKS_PER_WORKER * workers) * 1.01
    target = min(float(MEMORY), share) if shards == 1 else float(TRANSFERRED)
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
    """The task after the last shard of some blocks: compare the sums of all shards."""
    return replace(task, text=None, sums=sums, work=_decompositions(task.blocks))


def _decompositions(blocks: Sequence[tuple[str, Sequence[MatrixRef]]]) -> float:
    """Cost of their decompositions, in the unit of the accumulation of sums."""
    return _DECOMPOSITION * sum(float(ref.cols**3) for _, refs in blocks for ref in refs)


def _tasks(base: ActivationTask, blocks: dict[str, tuple[MatrixRef, ...]], workers: int) -> list[ActivationTask]:
    """One task for each group of blocks and shard of the text; the largest first, the shards of a group together."""
    assert base.text is not None, "only comparisons have no text"
    shards = _shards(base.text)
    before, tasks = 0, []
    for group in _groups(blocks, len(shards), workers, halves=base.halves):
        before += len(group)
        for number, text in enumerate(shards):
            # Accumulation for its blocks, a forward pass up to the last of them, and the comparison if it is not a task of its own.
            cost = (
                text.tokens * sum(float(ref.cols**2) for _, refs in group for ref in refs) * (1 + before / len(blocks))
            )
            cost += _decompositions(group) if len(shards) == 1 else 0.0
            tasks.append(replace(base, blocks=group, text=text, work=cost, shard=number, shards=len(shards)))
    if len(shards) > 1:
        return tasks
    return sorted(tasks, key=lambda task: (-task.cost, task.name))


EXPERIMENT = register_experiment(
    Experiment(
        name="activations",
        config=Config,
        plan=plan,
        query="overlap_vs_region",
        help="""
Compare the activations that enter each matrix with its singular vectors: overlaps with eigenvectors of their covariance.

The model reads a text; covariances are accumulated in float64, centered and not. Rows are written to the tables overlaps,
activation_spectra and, with --map, overlap_maps; existing blocks are reused. Prints query overlap_vs_region.

Examples:

    rmtscan activations ./my-model --text novel.txt

    rmtscan activations ./my-model --text novel.txt --halves --map query:3

    rmtscan activations ./encoder --text reviews.csv --column text --where source=rotten_tomatoes --tokens 50000
""",
    )
)
