"""Random controls of the matrices of checkpoints: which of them the store lacks, and what becomes of each result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from scanner.checkpoint import Checkpoint, MatrixRef
from scanner.engine import rows
from scanner.engine.method import Method
from scanner.engine.tasks import CONTROL_SEED, MatrixControls, MatrixControlTask, versions_read
from scanner.engine.work import Stored
from scanner.rmt.ensembles import MATRIX_ENSEMBLES, Ensemble
from scanner.store import Store
from scanner.store.staging import key_hash


@dataclass(kw_only=True)
class _Open:
    """Controls of one checkpoint that are not in the store yet. They outlive the scan of it, which is committed earlier."""

    final: str  # id of the scan; empty while it is not known
    model: str
    # Being computed, by key of the matrix.
    left: dict[str, tuple[tuple[Ensemble, int], ...]] = field(default_factory=dict)
    staged: list[tuple[str, Ensemble, int]] = field(default_factory=list)  # computed, and waiting for the id


class ControlQueue:
    """The controls of matrices: queued, staged while the id of their scan is not known, and stored."""

    def __init__(self, store: Store, method: Method, ensembles: Sequence[Ensemble], draws: int) -> None:
        """Prepare.

        Args:
            store: where they are written.
            method: how they are analyzed.
            ensembles: of which those of `MATRIX_ENSEMBLES` are made from a matrix.
            draws: number of draws of each.
        """
        self._store, self._method = store, method
        self.ensembles = [ensemble for ensemble in dict.fromkeys(ensembles) if ensemble in MATRIX_ENSEMBLES]
        self._seeds = range(CONTROL_SEED, CONTROL_SEED + draws)
        self._open: dict[str, _Open] = {}  # by the id that the tasks have
        self._copied: set[str] = set()  # ids of scans of which several checkpoints are copies
        self._models: dict[str, str] = {}  # the first model that was identified as each scan, whose name the scan has
        self._without: list[str] = []
        self._more_without = 0

    @property
    def owners(self) -> frozenset[str]:
        """Ids of the checkpoints that wait for controls."""
        return frozenset(self._open)

    @property
    def matrices_left(self) -> int:
        """Number of matrices whose controls are being computed."""
        return sum(len(controls.left) for controls in self._open.values())

    def tasks(self, own: str, final: str, checkpoint: Checkpoint, refs: Iterable[MatrixRef]) -> list[MatrixControlTask]:
        """Return what neither the store nor an interrupted run has of the controls of matrices.

        While the id of the scan is not known, also the tasks with nothing to compute, for `queue`.
        """

        def lacks(ref: MatrixRef, ensemble: Ensemble, seed: int) -> bool:
            if final:
                return not self._store.has_matrix_control(final, ref.key, ensemble, seed)
            return self._store.staged(own, _name(ref.key, ensemble, seed)) is None

        found = []
        for ref in refs if self.ensembles else ():
            if ref.factors is not None:  # its entries are not independent: no control of them is a null of it
                continue
            wanted = tuple((one, seed) for one in self.ensembles for seed in self._seeds if lacks(ref, one, seed))
            if wanted or not final:
                found.append(
                    MatrixControlTask(
                        scan_id=own,
                        model=checkpoint.model,
                        revision=checkpoint.revision,
                        source=checkpoint.source,
                        ref=ref,
                        sigma=self._method.sigma,
                        null=self._method.null,
                        scale=self._method.scale,
                        values_only=self._method.values_only,
                        wanted=wanted,
                        versions=versions_read(checkpoint.source, [ref], checkpoint.versions),
                    )
                )
        return found

    def queue(self, own: str, final: str, tasks: Sequence[MatrixControlTask]) -> list[MatrixControlTask]:
        """Take the controls of a checkpoint into account; returns the tasks that have something to compute."""
        if not tasks:
            return []
        controls = self._open.setdefault(own, _Open(final=final, model=tasks[0].model))
        if not final:  # results of an interrupted run
            everything = [(ensemble, seed) for ensemble in self.ensembles for seed in self._seeds]
            for task in tasks:
                controls.staged += [(task.ref.key, *one) for one in everything if one not in task.wanted]
        queued = [task for task in tasks if task.wanted and task.ref.key not in controls.left]
        controls.left |= {task.ref.key: task.wanted for task in queued}
        return queued

    def wanted(self, task: MatrixControlTask) -> bool:
        """Whether somebody still waits for the result; of a copy of another checkpoint, unless that one has got it."""
        controls = self._open.get(task.scan_id)
        if controls is None or task.ref.key not in controls.left:
            return False
        if controls.final in self._copied and self._are_stored(controls.final, task.ref.key, task.wanted):
            del controls.left[task.ref.key]
            self._forget(task.scan_id)
            return False
        return True

    def done(self, task: MatrixControlTask, value: MatrixControls) -> Stored:
        """Write the controls of a matrix; while the id of the scan is not known, they are staged.

        A matrix that has no scale null has an empty file as its control: the next scan does not try it again.
        """
        controls = self._open.get(task.scan_id)
        if controls is None or controls.left.pop(task.ref.key, None) is None:
            return Stored()  # the checkpoint has changed, or the store has them already
        for ensemble, seed, packed in value.drawn:
            if controls.final:
                self._write(controls.final, task.ref.key, ensemble, seed, packed)
            else:
                self._store.stage(task.scan_id, _name(task.ref.key, ensemble, seed), packed)
                controls.staged.append((task.ref.key, ensemble, seed))
        if value.without_scale and self._without:
            self._more_without += 1
        elif value.without_scale:
            self._without.append(f"{task.model}: {task.ref.tensor}: {value.without_scale}")
        self._forget(task.scan_id)
        return Stored()

    def failed(self, task: MatrixControlTask) -> Stored:
        """Give up the controls of a matrix; the next scan tries them again."""
        controls = self._open.get(task.scan_id)
        if controls is None:
            return Stored()
        controls.left.pop(task.ref.key, None)
        self._forget(task.scan_id)
        return Stored(failed=(task.name,))

    def identify(self, own: str, final: str) -> None:
        """Write what is staged under the id of the scan, and leave out what the store has by now."""
        controls = self._open.get(own)
        if controls is None:
            return
        controls.final = final
        self._models.setdefault(final, controls.model)
        for key, ensemble, seed in controls.staged:
            packed = self._store.staged(own, _name(key, ensemble, seed))
            if packed is not None and not self._store.has_matrix_control(final, key, ensemble, seed):
                self._write(final, key, ensemble, seed, packed)
        if controls.staged:
            controls.staged.clear()
            self._store.unstage(own)
        if any(other.final == final and name != own for name, other in self._open.items()):
            self._copied.add(final)
        for key, wanted in [*controls.left.items()]:
            if self._are_stored(final, key, wanted):
                del controls.left[key]  # `wanted` drops the task
        self._forget(own)

    def drop(self, own: str) -> None:
        """Forget the controls of a checkpoint that has changed, or cannot be hashed."""
        controls = self._open.pop(own, None)
        if controls is not None and controls.staged:
            self._store.unstage(own)

    def notes(self) -> list[str]:
        """Return one line on the matrices from whose scale null nothing was drawn, because they have none; then forget them."""
        found = []
        for first in self._without:
            others = f" ({self._more_without} more matrices have none)" if self._more_without else ""
            found.append(f"no draws of the scale null of {first}{others}")
        self._without, self._more_without = [], 0
        return found

    def _are_stored(self, final: str, key: str, wanted: Iterable[tuple[Ensemble, int]]) -> bool:
        return all(self._store.has_matrix_control(final, key, *one) for one in wanted)

    def _write(self, final: str, key: str, ensemble: Ensemble, seed: int, packed: bytes) -> None:
        table = rows.unpack(packed)
        known = {"scan_id": final} | ({"model": self._models[final]} if final in self._models else {})
        for name, value in known.items():
            at = table.schema.get_field_index(name)
            field_of = table.schema.field(at)
            table = table.set_column(at, field_of, pa.repeat(pa.scalar(value, field_of.type), table.num_rows))
        self._store.write_matrix_control(table, final, key, ensemble, seed)

    def _forget(self, own: str) -> None:
        controls = self._open[own]
        if controls.final and not controls.left:
            del self._open[own]


def _name(key: str, ensemble: Ensemble, seed: int) -> str:
    """Return the name under which a control of a matrix is staged."""
    return f"{key_hash(key)}-{ensemble}-{seed}"
