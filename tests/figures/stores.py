"""Stores that the figures are drawn from and checked against: real matrices, scanned in this process, and made-up experiments."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scanner.checkpoint import Checkpoint, MatrixRef, Selection, list_matrices, open_checkpoint, read_matrix
from scanner.engine import rows
from scanner.engine.computing import heads_of
from scanner.engine.tasks import ControlTask, MatrixTask
from scanner.experiments.lazy_learning import Outcome, Point, write_point
from scanner.experiments.mlp import Regime, Removal, Training
from scanner.rmt.analysis import Analysis, analyze
from scanner.rmt.ensembles import control
from scanner.store import SCHEMAS, Store, open_store
from tests.store.test_experiment_queries import add_overlaps, add_point, add_run, table
from tests.store.test_finetune_queries import add as add_finetuning

BASE, TUNED = "base/model", "tuned/model"
LAYERS = (0, 2, 5)
ENSEMBLES = ("gaussian", "kaiming_uniform")


def scan(
    store: Store, folder: Path, model: str, selection: Selection, scan_id: str, *, values_only: bool = False
) -> dict[str, Analysis]:
    """Analyze, stage and commit every selected matrix of a checkpoint; return the analyses by key."""
    checkpoint = open_checkpoint(str(folder))
    refs = list_matrices(checkpoint, selection).matrices
    writer = store.writer(scan_id, method={"sigma": "median", "null": "table"}, model=model)
    analyses = {}
    for ref in refs:
        task = MatrixTask(
            scan_id=scan_id,
            model=model,
            revision=checkpoint.revision,
            source=checkpoint.source,
            refs=(ref,),
            sigma="median",
            null="table",
        )
        analyses[ref.key] = analysis = analyze(
            read_matrix(checkpoint.source, ref), heads=heads_of(ref), values_only=values_only
        )
        matrix = rows.matrix_row(task, ref, analysis, device="cpu", measured={"seconds": 0.1})
        writer.stage(ref.key, matrix, rows.vector_rows(task, ref, analysis))
    writer.commit(_scan_row(checkpoint))
    return analyses


def _scan_row(checkpoint: Checkpoint) -> dict[str, object]:
    return {"revision": checkpoint.revision, "source": checkpoint.source, "identity": checkpoint.identity, "skipped": 0}


def add_controls(store: Store, shapes: set[tuple[int, int]]) -> None:
    """Write both kinds of random control of every shape."""
    for m, n in sorted(shapes):
        for ensemble in ENSEMBLES:
            task = ControlTask(ensemble=ensemble, rows=m, cols=n)
            table = rows.control_rows(task, analyze(control(ensemble, m, n, task.seed)))
            store.write_control(table, m, n, ensemble, task.seed)


def add_comparison(store: Store, base: dict[str, Analysis], tuned: dict[str, Analysis], refs: list[MatrixRef]) -> None:
    """Write the rows of a comparison, made from the analyses of both sides; later layers count as changed more."""
    batch = store.comparison("pair", method={})
    for ref in refs:
        one, other = base[ref.key], tuned[ref.key]
        place = {"pair_id": "pair", "base_tensor": ref.tensor, "layer": ref.layer, "role": ref.role}
        place |= {"rows": ref.rows, "cols": ref.cols}
        names = {"base_model": BASE, "tuned_model": TUNED, "tuned_tensor": ref.tensor, "identical": False}
        vectors = [
            place
            | {"k": k, "singular_value_base": one.singular_values[k], "singular_value_tuned": other.singular_values[k]}
            | {f"{side}_p_base": getattr(one, f"{side}_p")[k] for side in "uv"}
            | {f"{side}_p_tuned": getattr(other, f"{side}_p")[k] for side in "uv"}
            for k in range(len(one.singular_values))
        ]
        found = {
            "pairs": [place | names | {"relative_change": 0.01 * (1 + (ref.layer or 0))}],
            "pair_vectors": vectors,
            "pair_subspaces": [place | {"side": "u", "decile": 1, "dimensions": 1}],
        }
        batch.stage(ref.key, {name: pa.Table.from_pylist(row, schema=SCHEMAS[name]) for name, row in found.items()})
    models = {"base_model": BASE, "tuned_model": TUNED, "base_scan_id": "base", "tuned_scan_id": "tuned"}
    batch.commit([ref.key for ref in refs], lambda _: {"pair_id": "pair", "matrices": len(refs), **models})


def build(url: str, base: Path, tuned: Path) -> Store:
    """Build a store of two models with three blocks of a few roles each, the heads of one, both controls, and a comparison."""
    store = open_store(url, create=True)
    selection = Selection(only=("query", "value", "mlp_up"), layers=LAYERS)
    refs = list(list_matrices(open_checkpoint(str(base), identify=False), selection).matrices)
    before, after = (scan(store, folder, name, selection, scan_id) for folder, name, scan_id in _scans(base, tuned))
    scan(store, base, BASE, Selection(only=("query", "key"), layers=(0, 1), heads=True), "heads")
    add_controls(store, {(ref.rows, ref.cols) for ref in refs})
    add_comparison(store, before, after, refs)
    return store


def _scans(base: Path, tuned: Path) -> list[tuple[Path, str, str]]:
    return [(base, BASE, "base"), (tuned, TUNED, "tuned")]


def add_experiments(store: Store) -> None:
    """Write a small run of every experiment, with made-up numbers."""
    add_run(store, "run", "activations")
    add_overlaps(store, "run", [0.9, 0.7, 0.2, 0.1])
    place = {"run_id": "run", "model": "org/model", "tensor": "t", "layer": 0, "role": "query", "centred": True}
    spectrum = [place | {"index": i, "eigenvalue": 2.0**-i} for i in range(5)]
    store.write_rows("activation_spectra", "run", table("activation_spectra", spectrum), method={})
    row = {"run_id": "run", "model": "org/model", "tensor": "t", "layer": 0, "role": "query", "cols": 5, "tokens": 99}
    cells = [row | {"k": k, "j": j, "overlap": 1.0 / (1 + k + j), "centred": True} for k in range(3) for j in range(5)]
    store.write_rows("overlap_maps", "run", table("overlap_maps", cells), method={})
    add_run(store, "points", "ablation")
    for decile in range(1, 11):
        add_point(store, f"d{decile}", run_id="points", set=f"decile:{decile}", delta=decile - 2.0)
    add_point(store, "r", run_id="points", set="random:1", delta=1.0)
    add_run(store, "slices", "slicing")
    for decile in range(1, 11):
        add_point(store, f"s{decile}", run_id="slices", set=f"slice:{decile}", roles="after norm", delta=2.0 * decile)
    add_finetuning(store, "tuning", "none", None, [0.70, 0.74, 0.72])
    for decile in (1, 5, 10):
        add_finetuning(store, "tuning", "remove-first", decile, [0.60, 0.70])
        add_finetuning(store, "tuning", "tune-first", decile, [0.50, 0.52, 0.54])
    for seed, alpha in enumerate((1.0, 15.0)):
        add_lazy(store, alpha=alpha, seed=seed, width=64, accuracy=0.9 - 0.02 * alpha)


def add_training(store: Store) -> None:
    """Write overlaps of two more checkpoints, with made-up numbers."""
    for step in (100, 20):
        add_run(store, f"step{step}", "activations", model=f"org/model-step{step}")
        add_overlaps(store, f"step{step}", [step / 200.0, 0.2, 0.1], model=f"org/model-step{step}")


def add_lazy(store: Store, *, alpha: float, seed: int, width: int, accuracy: float) -> None:
    """Write the point of a network that was trained on digits, with a fifth of its singular values removed."""
    point = Point(
        data=None,
        digest="d",
        dataset="digits",
        sizes=(width, 512, 10),
        regime=Regime(alpha=alpha),
        training=Training(),
        shares=(0.2,),
        seed=seed,
    )
    change = {"accuracy": accuracy, "delta": accuracy - 0.95, "stderr": 0.01}
    removal = Removal(ordering="smallest", share=0.2, removed=1, fraction=0.2, **change)
    write_point(store, point, Outcome(baseline=0.95, removals=(removal,), examples=10, seconds=1.0), {})


def tables(specification: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return every table that a chart embeds; CSV is read with the csv module."""
    kinds = {str(data.get("name")): data.get("format", {}) for data in _data(specification)}
    return [_table(values, kinds.get(name, {})) for name, values in specification.get("datasets", {}).items()]


def named_table(specification: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the table of the view of that name; Altair appends a number to the names of views of a concatenation."""
    for view in _views(specification):
        if re.fullmatch(rf"{name}(_\d+)?", str(view.get("name"))):
            data = view["data"]
            return _table(specification["datasets"][data["name"]], data.get("format", {}))
    raise AssertionError(f"no view {name!r} in {[view.get('name') for view in _views(specification)]}")


def _views(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "mark" in node or "layer" in node:
            yield node
        for part in ("layer", "concat", "hconcat", "vconcat"):
            for child in node.get(part, []):
                yield from _views(child)


def _data(node: Any) -> Iterator[dict[str, Any]]:
    for view in _views(node):
        if "data" in view:
            yield view["data"]


def _table(values: Any, form: dict[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(values, str):
        return list(values)
    numbers = {*form.get("parse", {})}
    found = []
    for row in csv.DictReader(io.StringIO(values)):
        found.append({k: (float(v) if v else None) if k in numbers else v for k, v in row.items()})
    return found


def column(table: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in table], dtype=float)
