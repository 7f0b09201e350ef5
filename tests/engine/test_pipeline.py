"""Many checkpoints in one command: opened ahead of the workers, committed one by one, identified beside the scan."""

from __future__ import annotations

import importlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scanner import PoolOptions, Store, open_store
from scanner.checkpoint import Checkpoint, open_checkpoint
from scanner.engine.ahead import OPENED_AHEAD, Opened, Opener, open_reference
from scanner.engine.method import Method
from scanner.engine.scan import ScanWork
from scanner.engine.scan import scan as run_scan
from scanner.engine.task import Task
from scanner.engine.tasks import MatrixControlTask, MatrixTask
from scanner.engine.work import Observer
from scanner.errors import CheckpointError, ConfigError
from tests.checkpoint.writing import WEIGHTS
from tests.faults.here import run_here
from tests.processes import wait_until

from .checkpoints import results, rows, small
from .observer import Recorder

ONE = PoolOptions(workers=1)
scanning = importlib.import_module("scanner.engine.scan")


@pytest.fixture
def hashed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every local file is large: it is hashed beside the scan."""
    monkeypatch.setattr("scanner.engine.ahead.HASHED_AT_ONCE", 0)


# ---- opening


def take_all(opener: Opener) -> list[str]:
    found = []
    while (opened := opener.take(10.0, lambda reference: None)) is not None:
        found.append(opened.reference)
    return found


def test_references_are_opened_concurrently_and_only_so_far_ahead() -> None:
    together = threading.Barrier(OPENED_AHEAD, timeout=30)
    reached: list[str] = []

    def references() -> Iterator[str]:
        for number in range(5 * OPENED_AHEAD):
            reached.append(f"org/{number}")
            yield reached[-1]

    def open_one(reference: str) -> Opened:
        if len(reached) <= OPENED_AHEAD:
            together.wait()  # breaks, unless all of them are being opened at once
        return Opened(reference=reference)

    opener = Opener(references(), open_one)
    assert reached == [], "nothing happens before it is needed"
    begun: list[str] = []
    taken = [opener.take(30.0, begun.append) for _ in range(OPENED_AHEAD)]
    assert {one.reference for one in taken if one is not None} <= {*begun} <= {*reached}
    assert len(reached) <= 2 * OPENED_AHEAD + 1
    assert len({one.reference for one in taken if one is not None} | {*take_all(opener)}) == 5 * OPENED_AHEAD
    assert opener.exhausted


def test_an_error_of_the_iterator_of_references_reaches_the_caller() -> None:
    def references() -> Iterator[str]:
        yield "org/one"
        raise ZeroDivisionError("no more")

    opener = Opener(references(), lambda reference: Opened(reference=reference))
    with pytest.raises(ZeroDivisionError):
        take_all(opener)


@pytest.mark.usefixtures("local_ray")
def test_a_checkpoint_that_crashes_while_it_is_opened_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashes(reference: str, **options: Any) -> Checkpoint:
        if reference.endswith("bad"):
            raise RecursionError("maximum depth\nexceeded")
        return open_checkpoint(reference, **options)

    monkeypatch.setattr("scanner.engine.ahead.open_checkpoint", crashes)
    bad, good = small(tmp_path / "bad", layers=1), small(tmp_path / "good", layers=1, seed=1)
    first, second = run_scan([bad, good], store=tmp_path / "store", pool=ONE).models
    assert str(first.error) == f"{bad}: opening it failed unexpectedly (RecursionError: exceeded)"
    assert isinstance(first.error, CheckpointError)
    assert (second.error, second.failed) == (None, 0)


@pytest.mark.usefixtures("local_ray")
def test_a_model_is_committed_while_the_next_is_still_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = threading.Event()
    waited: list[bool] = []

    class Tells(Recorder):
        def model_done(self, model: Any) -> None:
            super().model_done(model)
            committed.set()

    def slowly(reference: str, *arguments: Any, **options: Any) -> Opened:
        if reference.endswith("second"):
            waited.append(committed.wait(60))
        return open_reference(reference, *arguments, **options)

    monkeypatch.setattr(scanning, "open_reference", slowly)
    first, second = small(tmp_path / "first", layers=1), small(tmp_path / "second", layers=1, seed=1)
    told = Tells()
    report = run_scan(iter([first, second]), store=tmp_path / "store", observer=told, pool=ONE)
    assert waited == [True], "the first model was committed before the second was open"
    assert [model.analyzed for model in report.models] == [4, 4]
    assert told.queues == [len(told.tasks)], "the total grew"
    assert [Path(model.reference).name for model in told.models] == ["first", "second"]


@pytest.mark.usefixtures("local_ray")
def test_many_models_with_broken_ones_among_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is lower than the number of models, so that some are opened only when others have been committed."""
    monkeypatch.setattr(scanning, "_MODELS_AT_ONCE", 3)
    names = [small(tmp_path / str(number), layers=1, hidden=8, seed=number) for number in range(9)]
    (tmp_path / "3" / WEIGHTS).write_bytes(b"nothing")
    shutil.copytree(tmp_path / "0", tmp_path / "copy")
    listed = 0
    at_once: list[int] = []
    store = open_store(str(tmp_path / "store"), create=True)
    real = type(store).committed

    def committed(self: Any) -> list[str]:
        nonlocal listed
        listed += 1
        return real(self)

    monkeypatch.setattr(type(store), "committed", committed)
    work = ScanWork(store, Method(), Observer(), references=iter([*names, str(tmp_path / "copy")]))
    add = work._add
    monkeypatch.setattr(work, "_add", lambda *a, **k: (add(*a, **k), at_once.append(len(work.jobs))))
    importlib.import_module("scanner.engine.run").run([work], ONE, work.observer)
    assert listed == 1, "the scans of the store are listed once"
    assert work.jobs == {}, "what belongs to a model is released"
    assert 1 <= max(at_once) <= 4, "four for each worker, if this is more"
    reports = [work.reports[name] for name in names]
    assert [report.error is None for report in reports] == [number != 3 for number in range(9)]
    assert {report.analyzed for report in reports if report.error is None} == {4}
    assert reports[3].error is not None
    assert reports[3].error.__traceback__ is None, "frames would keep the checkpoint in memory"
    assert work.reports[str(tmp_path / "copy")].scan_id == reports[0].scan_id
    assert len(real(store)) == 8


def test_what_is_no_reference_is_refused_also_in_an_iterator(tmp_path: Path) -> None:
    for wrong in ([3], {"a": 1}, b"x", 3):
        with pytest.raises(ConfigError, match="`references`"):
            run_scan(wrong, store=tmp_path / "store")  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()
    with pytest.raises(ConfigError, match="has a int"):
        run_scan(iter([3]), store=tmp_path / "store")  # type: ignore[list-item]


# ---- identities beside the scan


def scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, *references: str) -> ScanWork:
    work = ScanWork(
        open_store(str(tmp_path / store), create=True), Method(), Observer(), ensembles=(), references=iter(references)
    )
    run_here(monkeypatch, work)
    work.close()
    return work


def staged(tmp_path: Path, store: str) -> list[str]:
    folder = tmp_path / store / "staging"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_files_that_are_hashed_beside_the_scan_give_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = small(tmp_path / "base"), small(tmp_path / "tuned", seed=1)
    names = (base, tuned, f"delta:{base}..{tuned}")
    before = scanned(tmp_path, monkeypatch, "before", *names)
    monkeypatch.setattr("scanner.engine.ahead.HASHED_AT_ONCE", 0)
    later = scanned(tmp_path, monkeypatch, "later", *names)
    assert [later.reports[name].scan_id for name in names] == [before.reports[name].scan_id for name in names]
    assert results(later.store) == results(before.store)
    assert staged(tmp_path, "later") == []
    assert later.store.verify()
    assert all(found.state != "damaged" for found in later.store.verify())


@pytest.mark.usefixtures("hashed_later")
def test_content_that_has_a_scan_already_is_not_scanned_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = small(tmp_path / "model")
    first = scanned(tmp_path, monkeypatch, "store", reference)
    shutil.copytree(reference, tmp_path / "copy")
    work = ScanWork(first.store, Method(), Observer(), ensembles=(), references=iter([str(tmp_path / "copy")]))
    tasks = work.tasks()
    assert len(tasks) == 12
    while work.jobs:
        work.more(0.1)
    assert not any(work.wanted(task) for task in tasks), "the others are dropped from the queue"
    [report] = work.reports.values()
    assert (report.new, report.analyzed, report.scan_id) == (False, 12, first.reports[reference].scan_id)
    work.finish()
    work.close()
    assert staged(tmp_path, "store") == []


@pytest.mark.usefixtures("hashed_later")
def test_two_copies_are_one_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = small(tmp_path / "model")
    shutil.copytree(reference, tmp_path / "copy")
    work = scanned(tmp_path, monkeypatch, "store", reference, str(tmp_path / "copy"))
    one, copy = work.reports.values()
    assert (one.scan_id, one.new, one.analyzed) == (copy.scan_id, True, 12)
    assert work.store.committed() == [one.scan_id]
    assert staged(tmp_path, "store") == []


@pytest.mark.usefixtures("hashed_later")
def test_an_interrupted_scan_resumes_before_its_content_is_hashed_unless_a_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = small(tmp_path / "model")

    def interrupted(after: int) -> ScanWork:
        done: list[object] = []

        def stop(task: object) -> None:
            done.append(task)
            if len(done) > after:
                raise KeyboardInterrupt

        store = open_store(str(tmp_path / "store"), create=True)
        work = ScanWork(store, Method(), Observer(), ensembles=(), references=iter([reference]))
        with pytest.raises(KeyboardInterrupt):
            run_here(monkeypatch, work, before=stop)
        work.close()
        return work

    assert interrupted(5).kept == 0
    [own] = staged(tmp_path, "store")
    assert own.startswith("provisional-")
    assert interrupted(2).kept == 5
    assert scanned(tmp_path, monkeypatch, "store", reference).kept == 7
    assert staged(tmp_path, "store") == []

    file = tmp_path / "model" / WEIGHTS
    small(tmp_path / "model", seed=5)
    assert interrupted(5).kept == 0
    content = bytearray(file.read_bytes())
    content[-1:] = bytes([content[-1] ^ 1])
    file.write_bytes(content)
    work = scanned(tmp_path, monkeypatch, "store", reference)
    assert work.kept == 0, "the staged rows are of other content"
    assert work.reports[reference].error is None


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint whose weights are hashed beside the scan, unless their hash is known, and whose config is hashed at once."""
    monkeypatch.setattr("scanner.engine.ahead.HASHED_AT_ONCE", 100_000)
    return small(tmp_path / "model", hidden=128)


def interrupted_when_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, *references: str, after: int = 5
) -> ScanWork:
    """A scan that is interrupted after some matrices; by then all content is hashed, and later runs know it."""
    opened = open_store(str(tmp_path / store), create=True)
    work = ScanWork(opened, Method(), Observer(), ensembles=(), references=iter(references))
    done: list[object] = []

    def stop(task: object) -> None:
        done.append(task)
        if len(done) > after:
            wait_until(lambda: (work.more(0.0), not work._hasher.pending)[1], "the hash")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(monkeypatch, work, before=stop)
    work.close()
    return work


@pytest.mark.parametrize("kind", ["one", "delta"])
def test_an_interrupted_scan_resumes_when_its_content_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: str, kind: str
) -> None:
    """It began under an id that does not know the content, and the same command knows it from the start."""
    reference = large if kind == "one" else f"delta:{large}..{small(tmp_path / 'tuned', hidden=128, seed=1)}"
    interrupted_when_hashed(tmp_path, monkeypatch, "store", reference)
    [own] = staged(tmp_path, "store")
    assert own.startswith("provisional-")
    work = scanned(tmp_path, monkeypatch, "store", reference)
    assert work.kept == 5
    assert staged(tmp_path, "store") == []
    assert work.store.unfinished() == []
    assert work.reports[reference].analyzed == 12
    undisturbed = scanned(tmp_path, monkeypatch, "undisturbed", reference)
    assert undisturbed.kept == 0
    assert results(work.store) == results(undisturbed.store)
    assert {found.state for found in work.store.verify()} == {"whole"}


def test_two_interruptions_of_one_scan_under_two_ids_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: str
) -> None:
    """The hash is known, and then unknown: the cache of hashes was lost."""
    interrupted_when_hashed(tmp_path, monkeypatch, "elsewhere", large)
    interrupted_when_hashed(tmp_path, monkeypatch, "store", large, after=2)
    [own] = staged(tmp_path, "store")
    assert not own.startswith("provisional-")
    monkeypatch.setenv("RMTSCAN_HASH_CACHE", "0")
    interrupted_when_hashed(tmp_path, monkeypatch, "store", large)
    assert len(staged(tmp_path, "store")) == 2
    work = scanned(tmp_path, monkeypatch, "store", large)
    assert work.kept == 5
    assert staged(tmp_path, "store") == []


def test_parts_of_an_interrupted_scan_are_removed_when_the_store_has_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: str
) -> None:
    shutil.copytree(large, tmp_path / "copy")
    interrupted_when_hashed(tmp_path, monkeypatch, "store", large)
    copy = scanned(tmp_path, monkeypatch, "store", str(tmp_path / "copy"))
    assert len(staged(tmp_path, "store")) == 1
    work = scanned(tmp_path, monkeypatch, "store", large)
    assert work.reports[large].scan_id == copy.reports[str(tmp_path / "copy")].scan_id
    assert not work.reports[large].new
    assert staged(tmp_path, "store") == []


def test_by_force_parts_of_an_interrupted_scan_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: str
) -> None:
    interrupted_when_hashed(tmp_path, monkeypatch, "store", large)
    store = open_store(str(tmp_path / "store"))
    work = ScanWork(store, Method(), Observer(), ensembles=(), references=iter([large]), force=True)
    run_here(monkeypatch, work)
    work.close()
    assert work.kept == 0
    assert staged(tmp_path, "store") == []


@pytest.mark.usefixtures("hashed_later")
def test_a_file_that_changes_before_it_is_hashed_is_never_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = small(tmp_path / "model")
    started = threading.Event()
    real = importlib.import_module("scanner.engine.ahead").identified

    def late(*arguments: Any, **options: Any) -> Any:
        assert started.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr("scanner.engine.ahead.identified", late)
    store = open_store(str(tmp_path / "store"), create=True)
    work = ScanWork(store, Method(), Observer(), ensembles=(), references=iter([reference]))
    tasks = work.tasks()
    small(tmp_path / "model", seed=9)
    started.set()
    while work.jobs and not work.reports:
        work.more(0.1)
    [report] = work.reports.values()
    assert "changed while it was in use" in str(report.error)
    assert len(tasks) == 12
    work.close()
    assert store.committed() == []


@pytest.mark.usefixtures("hashed_later")
def test_the_difference_of_two_copies_is_refused_when_both_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = small(tmp_path / "model")
    shutil.copytree(reference, tmp_path / "copy")
    work = scanned(tmp_path, monkeypatch, "store", f"delta:{reference}..{tmp_path / 'copy'}")
    [report] = work.reports.values()
    assert isinstance(report.error, CheckpointError)
    assert "the same checkpoint" in str(report.error)
    assert work.store.committed() == []


@pytest.mark.usefixtures("hashed_later")
def test_two_drivers_of_one_checkpoint_end_with_one_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stage under the same provisional id; the second finds the scan of the first when it commits."""
    reference = small(tmp_path / "model")
    works = [
        ScanWork(
            open_store(str(tmp_path / "store"), create=True),
            Method(),
            Observer(),
            ensembles=(),
            references=iter([reference]),
        )
        for _ in range(2)
    ]
    planned = [work.tasks() for work in works]
    from scanner.engine import worker

    monkeypatch.setattr(worker, "granted_device", lambda: "cpu")
    one = worker.Worker()
    for work, tasks in zip(works, planned, strict=True):
        for task in tasks:
            work.done(task, one.run(task).value)
    for work in works:
        work.finish()
        work.close()
    first, second = (work.reports[reference] for work in works)
    assert first.scan_id == second.scan_id
    assert (first.error, second.error) == (None, None)
    assert first.analyzed == second.analyzed == 12
    assert [path.name for path in (tmp_path / "store" / "staging").glob("*")] == []


# ---- controls that are made from matrices


def controlled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: str,
    *references: str,
    before: Callable[[Task], None] = lambda task: None,
) -> ScanWork:
    work = ScanWork(
        open_store(str(tmp_path / store), create=True),
        Method(),
        Observer(),
        ensembles=("permuted", "sign"),
        draws=2,
        references=iter(references),
    )
    try:
        run_here(monkeypatch, work, before=before)
    finally:
        work.close()
    return work


def drawn(store: Store) -> list[dict[str, object]]:
    return rows(store, "matrix_controls")


def test_controls_of_matrices_get_the_id_of_the_scan_also_if_it_is_known_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the run is interrupted in between, if the checkpoint is there twice, and if the scan has its rows already."""
    reference = small(tmp_path / "model", layers=1, hidden=8)
    shutil.copytree(reference, tmp_path / "copy")
    expected = controlled(tmp_path, monkeypatch, "before", reference)
    identity = expected.reports[reference].scan_id
    found = drawn(expected.store)
    assert {row["scan_id"] for row in found} == {identity}
    assert len({(row["tensor"], row["ensemble"], row["seed"]) for row in found}) == 4 * 2 * 2
    assert not expected._controls.owners

    monkeypatch.setattr("scanner.engine.ahead.HASHED_AT_ONCE", 0)
    held = threading.Event()
    real = importlib.import_module("scanner.engine.ahead").identified

    def late(*arguments: Any, **options: Any) -> Any:
        assert held.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr("scanner.engine.ahead.identified", late)
    done: list[Task] = []

    def stop(task: Task) -> None:
        done.append(task)
        if sum(isinstance(one, MatrixControlTask) for one in done) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        controlled(tmp_path, monkeypatch, "later", reference, before=stop)
    folder = tmp_path / "later" / "staging-experiments"
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 2 * 4, "of two matrices"
    assert not (tmp_path / "later" / "matrix_controls").exists(), "nobody knows yet of which scan they are"

    queued: list[Task] = []

    def release(task: Task) -> None:
        queued.append(task)
        if len(queued) == 4:
            held.set()

    later = controlled(tmp_path, monkeypatch, "later", reference, str(tmp_path / "copy"), before=release)
    # Whichever of the two copies is hashed first gives the scan its name.
    [name] = later.store.sql("select model from scans")["model"].to_pylist()
    assert drawn(later.store) == [row | {"model": name} for row in found]
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert not later._controls.owners

    scan_only = scanned(tmp_path, monkeypatch, "plain", reference)
    assert drawn(scan_only.store) == []
    again = controlled(tmp_path, monkeypatch, "plain", reference)
    assert drawn(again.store) == found
    assert again.reports[reference].new is False


@pytest.mark.usefixtures("hashed_later")
def test_controls_of_a_file_that_changes_before_it_is_hashed_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = small(tmp_path / "model", layers=1, hidden=8)
    changed = threading.Event()
    real = importlib.import_module("scanner.engine.ahead").identified

    def late(*arguments: Any, **options: Any) -> Any:
        assert changed.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr("scanner.engine.ahead.identified", late)

    def change(task: Task) -> None:
        if isinstance(task, MatrixTask) and not changed.is_set():  # controls are larger, and come first
            small(tmp_path / "model", layers=1, hidden=8, seed=9)
            changed.set()

    work = controlled(tmp_path, monkeypatch, "store", reference, before=change)
    assert "changed" in str(work.reports[reference].error)
    assert drawn(work.store) == []
    assert not work._controls.owners
    assert not [path for path in (tmp_path / "store" / "staging-experiments").rglob("*") if path.is_file()]


def test_controls_count_against_the_number_of_models_that_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose rows are committed stays on the account until its controls are done, and then nothing of it is kept."""
    monkeypatch.setattr(scanning, "_MODELS_AT_ONCE", 2)
    names = [small(tmp_path / str(number), layers=1, hidden=8, seed=number) for number in range(5)]
    at_once: list[int] = []
    work = ScanWork(
        open_store(str(tmp_path / "store"), create=True),
        Method(),
        Observer(),
        ensembles=("sign",),
        references=iter(names),
    )
    run_here(monkeypatch, work, before=lambda task: at_once.append(len(work.jobs.keys() | work._controls.owners)))
    work.close()
    assert max(at_once) == 2
    assert (work.jobs, work._controls.owners) == ({}, frozenset())
    assert len({row["scan_id"] for row in drawn(work.store)}) == 5
