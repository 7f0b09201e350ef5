"""Controls of matrices whose checkpoints turn out to be copies of each other."""

from __future__ import annotations

from pathlib import Path

from scanner.checkpoint import list_matrices, open_checkpoint
from scanner.engine import rows
from scanner.engine.controls import ControlQueue
from scanner.engine.method import Method
from scanner.engine.tasks import MatrixControls, MatrixControlTask
from scanner.store import Store, open_store
from tests.store.rows import table

from .checkpoints import small


def queued(folder: Path, store: Store) -> tuple[ControlQueue, dict[str, list[MatrixControlTask]]]:
    """Controls of two copies of one checkpoint, of which nobody knows yet that they are."""
    queue = ControlQueue(store, Method(), ["sign"], 1)
    tasks = {}
    for own in "ab":
        checkpoint = open_checkpoint(small(folder / own, layers=1))
        refs = list_matrices(checkpoint, Method().selection).matrices
        tasks[own] = queue.queue(own, "", queue.tasks(own, "", checkpoint, refs))
        assert len(tasks[own]) == 4
    return queue, tasks


def test_a_copy_computes_its_controls_if_the_other_one_is_dropped(tmp_path: Path) -> None:
    queue, tasks = queued(tmp_path, open_store(str(tmp_path / "store"), create=True))
    queue.identify("a", "same")
    queue.identify("b", "same")
    queue.drop("a")
    assert not any(queue.wanted(task) for task in tasks["a"])
    assert all(queue.wanted(task) for task in tasks["b"])


def test_a_copy_does_not_compute_what_the_other_one_has_stored(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    queue, tasks = queued(tmp_path, store)
    queue.identify("a", "same")
    queue.identify("b", "same")
    first = tasks["a"][0]
    packed = rows.pack(rows.no_control_rows())
    queue.done(first, MatrixControls(drawn=(("sign", 0, packed),)))
    same = next(task for task in tasks["b"] if task.ref.key == first.ref.key)
    assert not queue.wanted(same)
    assert queue.matrices_left == 6
    for task in [*tasks["a"][1:], *tasks["b"]]:
        if queue.wanted(task):
            queue.done(task, MatrixControls(drawn=(("sign", 0, packed),)))
    assert not queue.owners


def test_rows_have_the_name_of_the_model_that_was_identified_first(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    queue, tasks = queued(tmp_path, store)
    queue.identify("a", "same")
    queue.identify("b", "same")
    for task in [*tasks["b"], *tasks["a"]]:  # in whatever order they are computed
        if queue.wanted(task):
            row: dict[str, object] = {
                "scan_id": task.scan_id,
                "model": task.model,
                "tensor": task.ref.tensor,
                "role": task.ref.role,
            }
            row |= {"rows": 2, "cols": 2, "ensemble": "sign", "seed": 0, "k": 0, "singular_value": 1.0}
            queue.done(task, MatrixControls(drawn=(("sign", 0, rows.pack(table("matrix_controls", [row]))),)))
    models = {row["model"] for row in store.sql("select distinct model from matrix_controls").to_pylist()}
    assert models == {tasks["a"][0].model}
