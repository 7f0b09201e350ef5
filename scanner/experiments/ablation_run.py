"""`rmtscan ablate`: which points there are, and the call that runs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

from scanner.checkpoint import ROLES, MatrixRef, Selection
from scanner.checkpoint.names import printable
from scanner.engine import PoolOptions, ScanObserver
from scanner.errors import ScannerError
from scanner.experiments.ablation_task import AblationTask, AblationWorker
from scanner.experiments.measures import MeasureRequest, measurement
from scanner.experiments.models import Precision, model_place
from scanner.experiments.placing import open_target
from scanner.experiments.point_run import PointReport, PointRun
from scanner.experiments.removal import RemovalSet, parse_sets, size_by_rank
from scanner.store import open_store

By = Literal["role", "layer", "all"]
BYS: tuple[By, ...] = get_args(By)


def ablate(
    reference: str,
    wanted: MeasureRequest,
    *,
    roles: Sequence[str] = (),
    layers: Sequence[int] = (),
    by: By = "role",
    sets: str = "deciles",
    random_sets: int = 1,
    store: str = "results",
    dtype: Precision = "float32",
    pool: PoolOptions | None = None,
    observer: ScanObserver | None = None,
) -> PointReport:
    """Measure what a model loses when sets of singular values are taken out of its weights, each beside a random set.

    Args:
        reference: the model: a folder, a GGUF file, org/name.
        wanted: what is measured, and on which text.
        roles: roles whose matrices are changed; none: all that stand in the blocks.
        layers: blocks whose matrices are changed; none: all.
        by: one point for each role (in all these blocks), for each block (all these roles), or for all matrices at once.
        sets: as `removal.parse_sets`.
        random_sets: random sets beside each one.
        store: where the results go; made if it is not there.
        dtype: precision of the model.
        pool: where and on how many workers.
        observer: told of progress.

    Raises:
        ScannerError: a text, model, role, layer or set that does not serve; the message says why.
        KeyboardInterrupt: interrupted; finished points are in the store, and the same call goes on from there.
    """
    observer, options = observer or ScanObserver(), pool or PoolOptions()
    if random_sets < 0:
        raise ScannerError(f"the number of random sets cannot be negative, got {random_sets}")
    chosen = parse_sets(sets, random_sets)
    observer.opening(reference)
    target = open_target(reference, Selection(only=tuple(roles), layers=tuple(layers)))
    refs = [ref for ref in target.inventory.matrices if ref.layer is not None]
    if not refs:
        raise ScannerError(f"{printable(target.checkpoint.model)} has no matrix of these roles in a block")
    _require_ranks(chosen, refs)
    place = model_place(target.checkpoint)
    measured = measurement(place, wanted)
    run = PointRun(
        kind="ablation",
        store=open_store(store, create=True),
        observer=observer,
        checkpoint=target.checkpoint,
        place=place,
        measurement=measured,
        parameters=measured.parameters | {"dtype": dtype},
        dtype=dtype,
    )
    return run.carry_out(AblationWorker, _points(run.base, refs, by, chosen), options)


def _require_ranks(sets: Sequence[RemovalSet], refs: Sequence[MatrixRef]) -> None:
    """Whether some matrix has all ranks of a range.

    Raises:
        ScannerError: none has.
    """
    most = max(min(ref.rows, ref.cols) for ref in refs)
    for wanted in sets:
        kind, _, ends = wanted.name.partition(":")
        if kind == "range" and int(ends.partition(":")[2]) > most:
            raise ScannerError(
                f"--sets {ends}: these matrices have {most} singular values at most, ranks 0 to {most - 1}; A:B is A up to B - 1"
            )


def _points(base: dict[str, Any], refs: Sequence[MatrixRef], by: By, sets: Sequence[RemovalSet]) -> list[AblationTask]:
    """One task for each group of matrices and set; random sets of equal sizes are one."""
    groups: dict[tuple[str, int], list[MatrixRef]] = {}
    for ref in sorted(refs, key=lambda ref: (ref.stack or "", ref.layer or 0, ROLES.index(ref.role))):
        of_role, of_layer = ("", ROLES.index(ref.role)), (ref.stack or "", ref.layer or 0)
        groups.setdefault({"role": of_role, "layer": of_layer, "all": ("", 0)}[by], []).append(ref)
    found: dict[str, AblationTask] = {}
    for key in sorted(groups):
        group = groups[key]
        roles = ",".join(sorted({ref.role for ref in group}, key=ROLES.index))
        layers = _layers(group)
        for wanted in sets:
            first = (wanted.beside or wanted.name).removeprefix("range:").partition(":")[0]
            if first.isdecimal() and int(first) >= max(min(ref.rows, ref.cols) for ref in group):
                continue  # a range of other, larger matrices
            what: object = wanted.name
            if wanted.beside is not None:
                sizes = [size_by_rank(wanted.beside, min(ref.rows, ref.cols)) for ref in group]
                what = [wanted.name, wanted.beside if None in sizes else sizes]
            identity = json.dumps([sorted(ref.key for ref in group), what])
            point = f"{base['run_id']}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
            found.setdefault(
                point,
                AblationTask(**base, point=point, refs=tuple(group), wanted=wanted, roles=roles, layers=layers),
            )
    return list(found.values())


def _layers(refs: Sequence[MatrixRef]) -> str:
    """`0-5` or `0,3-4`, with the stack before it where models have several: `encoder:0-5`."""
    texts = []
    for stack in dict.fromkeys(ref.stack for ref in refs):
        layers = sorted({ref.layer for ref in refs if ref.stack == stack and ref.layer is not None})
        runs: list[list[int]] = []
        for layer in layers:
            if runs and layer == runs[-1][1] + 1:
                runs[-1][1] = layer
            else:
                runs.append([layer, layer])
        text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
        texts.append(f"{stack}:{text}" if stack is not None else text)
    return " ".join(texts)
