"""A file of a checkpoint that changes during a run is noticed, and nothing that was read from it is believed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from safetensors.torch import save_file

from scanner.checkpoint import open_checkpoint, read_matrix
from scanner.checkpoint.inventory import list_matrices
from scanner.checkpoint.sources.files import LocalFiles, check_unchanged
from scanner.engine.compare import ComparisonWork
from scanner.engine.method import Method
from scanner.engine.scan import ScanWork
from scanner.engine.task import Task
from scanner.engine.tasks import MatrixTask
from scanner.engine.work import Observer
from scanner.errors import ChangedError
from scanner.store import Store, open_store
from tests.checkpoint.writing import WEIGHTS, sharded
from tests.engine.checkpoints import small, tensors

from .here import run_here

Change = Callable[[Path], None]


def replaced(file: Path) -> None:
    """Another file of the same size and shape under the name."""
    save_file(tensors(seed=7), file.with_name("new"))
    os.replace(file.with_name("new"), file)  # noqa: PTH105


def rewritten_with_its_old_time(file: Path) -> None:
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1000:] = bytes(1000)
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def removed(file: Path) -> None:
    file.unlink()


def folder_removed(file: Path) -> None:
    shutil.rmtree(file.parent)


CHANGES = (replaced, rewritten_with_its_old_time, cut_short, removed, folder_removed)


def scan_work(store: Store, *references: str, strict: bool = False) -> ScanWork:
    work = ScanWork(store, Method(), Observer(), ensembles=(), strict=strict)
    for reference in references:
        work.add(reference, force=False, download=False)
    return work


def once(change: Change, file: Path, *, after: int, kind: type = MatrixTask) -> Callable[[Task], None]:
    """Change the file before task number `after` of a kind."""
    seen = []

    def before(task: Task) -> None:
        if isinstance(task, kind):
            seen.append(task)
            if len(seen) == after + 1:
                change(file)

    return before


@pytest.mark.parametrize("change", CHANGES)
def test_a_scan_of_a_changed_file_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    reference = small(tmp_path / "model")
    store = open_store(str(tmp_path / "store"), create=True)
    work = scan_work(store, reference)
    [job] = work.jobs.values()
    run_here(monkeypatch, work, before=once(change, tmp_path / "model" / WEIGHTS, after=3))
    [error] = [report.error for report in work.reports.values()]
    assert isinstance(error, ChangedError)
    assert WEIGHTS in str(error)
    assert "run the command again" in str(error)
    assert "\n" not in str(error)
    assert store.committed() == []
    assert job.writer.staged() == set(), "a later run of the old identity would believe them"


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_the_last_matrix_is_noticed_before_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    reference = small(tmp_path / "model")
    store = open_store(str(tmp_path / "store"), create=True)
    work = scan_work(store, reference)
    real = work._commit

    def commit(job: object) -> None:
        change(tmp_path / "model" / WEIGHTS)
        real(job)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "_commit", commit)
    run_here(monkeypatch, work)
    [error] = [report.error for report in work.reports.values()]
    assert isinstance(error, ChangedError)
    assert store.committed() == []


def test_rows_of_other_files_are_kept_and_the_file_put_back_completes_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tensors(layers=4)
    names = sorted(made)
    half = [{name: made[name] for name in chosen} for chosen in (names[:10], names[10:])]
    reference = sharded(tmp_path / "model", {"a.safetensors": half[0], "b.safetensors": half[1]})
    file = tmp_path / "model" / "b.safetensors"
    shutil.copy2(file, tmp_path / "kept")
    store = open_store(str(tmp_path / "store"), create=True)
    work = scan_work(store, reference)
    [job] = work.jobs.values()
    of_b = {ref.key for ref in job.inventory.matrices if ref.entry.file == "b.safetensors"}
    run_here(monkeypatch, work, before=once(cut_short, file, after=9))
    staged = job.writer.staged()
    assert staged == {ref.key for ref in job.inventory.matrices} - of_b

    shutil.copy2(tmp_path / "kept", file)
    again = scan_work(store, reference)
    [second] = again.jobs.values()
    assert second.scan_id == job.scan_id
    assert second.todo == of_b
    run_here(monkeypatch, again)
    assert store.committed() == [job.scan_id]


def test_a_difference_checks_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = small(tmp_path / "base"), small(tmp_path / "tuned", seed=1)
    store = open_store(str(tmp_path / "store"), create=True)
    work = scan_work(store, f"delta:{base}..{tuned}")
    run_here(monkeypatch, work, before=once(replaced, tmp_path / "base" / WEIGHTS, after=2))
    [error] = [report.error for report in work.reports.values()]
    assert isinstance(error, ChangedError)
    assert store.committed() == []


def test_a_comparison_of_a_changed_file_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scanner.engine.compare import PairTask

    base, tuned = (open_checkpoint(small(tmp_path / name, seed=seed)) for seed, name in enumerate(("base", "tuned")))
    store = open_store(str(tmp_path / "store"), create=True)
    scans = ScanWork(store, Method(), Observer(), ensembles=(), strict=True)
    comparison = ComparisonWork(store, Method(), base, tuned, force=False)
    for one in (base, tuned, comparison.delta):
        scans.add_opened(one.model, one, force=False)
    change = once(replaced, tmp_path / "tuned" / WEIGHTS, after=3, kind=PairTask)
    with pytest.raises(ChangedError, match="run the command again"):
        run_here(monkeypatch, scans, comparison, before=change)
    assert not comparison.batch.committed
    assert comparison.batch.staged([tuned.key for _, tuned in comparison.matching.pairs]) == set()


def test_a_scan_that_a_comparison_needs_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    work = scan_work(store, small(tmp_path / "model"), strict=True)
    with pytest.raises(ChangedError):
        run_here(monkeypatch, work, before=once(cut_short, tmp_path / "model" / WEIGHTS, after=1))


def test_the_header_belongs_to_the_content_that_was_hashed(tmp_path: Path) -> None:
    files = LocalFiles(small(tmp_path / "model"))
    files.read(WEIGHTS, 0, 8)
    replaced(tmp_path / "model" / WEIGHTS)
    with pytest.raises(ChangedError):
        files.identity([WEIGHTS])


def test_a_config_that_changes_counts(tmp_path: Path) -> None:
    opened = open_checkpoint(small(tmp_path / "model"))
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ChangedError, match=r"config\.json"):
        check_unchanged(opened.versions)


def test_another_machine_compares_size_and_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_checkpoint(small(tmp_path / "model"))
    file = tmp_path / "model" / WEIGHTS
    shutil.copy2(file, tmp_path / "copy")
    os.replace(tmp_path / "copy", file)  # noqa: PTH105
    monkeypatch.setattr("socket.gethostname", lambda: "other")
    check_unchanged(opened.versions)
    os.utime(file)
    with pytest.raises(ChangedError):
        check_unchanged(opened.versions)


def test_a_remote_file_that_is_replaced_is_noticed(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(small(tmp_path / "model"), "/changing/model", recursive=True)
    try:
        opened = open_checkpoint("memory://changing/model")
        [ref, *_] = list_matrices(opened).matrices
        read_matrix(opened.source, ref, opened.versions)
        memory.put_file(f"{small(tmp_path / 'other', seed=3)}/{WEIGHTS}", f"/changing/model/{WEIGHTS}")
        with pytest.raises(ChangedError):
            read_matrix(opened.source, ref, opened.versions)
    finally:
        memory.rm("/changing", recursive=True)


def test_the_weights_of_an_experiment_are_those_that_were_hashed(tmp_path: Path) -> None:
    from scanner.experiments.experiment import ExperimentWork
    from scanner.experiments.nlp.models import load_model, model_place

    opened = open_checkpoint(small(tmp_path / "model"))
    replaced(tmp_path / "model" / WEIGHTS)
    with pytest.raises(ChangedError):
        load_model(model_place(opened))

    class Some(ExperimentWork):
        versions = opened.versions
        names = tasks = done = report = None  # type: ignore[assignment]

    with pytest.raises(ChangedError):
        Some(open_store(str(tmp_path / "store"), create=True)).check_inputs()
