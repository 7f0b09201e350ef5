import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanner.errors import StoreError
from scanner.store import ScanWriter, Store, open_store, row_groups
from scanner.store.changing import changing
from scanner.store.files import StoreFiles
from scanner.store.lease import LeaseHeldError

from .rows import Matrix, add_scan, failure, scan_values, table

METHOD = {"sigma": "median", "null": "table"}


def begin(store: Store, scan_id: str = "one") -> ScanWriter:
    return store.writer(scan_id, method=METHOD, model="org/model")


def stage(writer: ScanWriter, matrix: Matrix) -> None:
    writer.stage(matrix.key, *matrix.tables(writer.scan_id, "org/model", "r1"))


def files_of(store: Store) -> list[str]:
    root = Path(store.url)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


SOME = [
    Matrix(tensor="b", layer=1, role="value"),
    Matrix(tensor="a", layer=1, role="key"),
    Matrix(tensor="emb", layer=None, role="embedding"),
    Matrix(tensor="c", layer=0, role="value", expert=1),
    Matrix(tensor="c", layer=0, role="value", expert=0),
    Matrix(tensor="c", layer=0, role="value", expert=10),
]
SORTED: list[tuple[object, ...]] = [
    (0, "value", "c", 0),
    (0, "value", "c", 1),
    (0, "value", "c", 10),
    (1, "key", "a", None),
]
SORTED += [(1, "value", "b", None), (None, "embedding", "emb", None)]


def test_a_scan_that_is_resumed_under_another_name_has_that_name_in_every_row(store: Store) -> None:
    stage(begin(store), SOME[0])
    writer = store.writer("one", method=METHOD, model="org/renamed")
    stage(writer, SOME[1])
    writer.commit(scan_values())
    for name in ("scans", "matrices", "vectors"):
        assert store.sql(f"SELECT DISTINCT model FROM {name}").to_pylist() == [{"model": "org/renamed"}]


def test_a_commit_leaves_one_sorted_file_per_table_and_no_staging(store: Store) -> None:
    writer = begin(store)
    for matrix in SOME:
        stage(writer, matrix)
    writer.stage_failure("z", failure("one", "z"))
    writer.commit(scan_values(skipped=3))

    assert files_of(store) == [f"{name}/one.parquet" for name in ("failures", "matrices", "scans", "vectors")]
    assert not Path(store.url, "staging", "one").exists()
    columns = ["layer", "role", "tensor", "expert"]
    matrices = pq.read_table(Path(store.url, "matrices", "one.parquet")).select(columns).to_pylist()
    assert [tuple(row.values()) for row in matrices] == SORTED
    vectors = pq.read_table(Path(store.url, "vectors", "one.parquet")).select([*columns, "k"]).to_pylist()
    assert [tuple(row.values()) for row in vectors] == [(*matrix, k) for matrix in SORTED for k in range(4)]


def test_counts_model_and_method_of_the_scan_s_row_are_filled_in(store: Store) -> None:
    writer = begin(store)
    for matrix in SOME:
        stage(writer, matrix)
    writer.stage_failure("z", failure("one", "z"))
    values = scan_values(skipped=3, skipped_tensors={"one dimension": ["bias"]}, environment={"workers": 2})
    writer.commit(values)
    row = store.scan_row("one")
    assert row is not None
    assert (row["scan_id"], row["model"], row["matrices"], row["vectors"]) == ("one", "org/model", 6, 24)
    assert (row["failed"], row["skipped"], row["finished_at"]) == (1, 3, values["finished_at"])
    assert row["method"] == '{"null": "table", "sigma": "median"}'
    assert row["skipped_tensors"] == '{"one dimension": ["bias"]}'
    assert row["environment"] == '{"workers": 2}'


def test_vectors_staged_in_any_order_are_sorted_by_rank(store: Store) -> None:
    writer = begin(store)
    matrices, vectors = Matrix().tables("one", "org/model", "r1")
    writer.stage("q", matrices, vectors.take([2, 0, 3, 1]))
    writer.commit(scan_values())
    assert store.sql("select list(k) as k from vectors").to_pylist() == [{"k": [0, 1, 2, 3]}]


def test_row_groups_are_cut_across_matrices(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "ROW_GROUP", 10)
    monkeypatch.setattr(row_groups, "SMALLEST_ROW_GROUP", 4)
    writer = begin(store)
    for layer in range(8):
        stage(writer, Matrix(tensor=f"t{layer}", layer=layer))
    writer.commit(scan_values())
    metadata = pq.read_metadata(Path(store.url, "vectors", "one.parquet"))
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [10, 10, 12]
    read = pq.read_table(Path(store.url, "vectors", "one.parquet"))
    assert read["layer"].to_pylist() == sorted([*range(8)] * 4)


def test_row_groups_have_between_100k_and_1m_rows(store: Store) -> None:
    writer = begin(store)
    for layer in range(9):
        stage(writer, Matrix(tensor=f"t{layer}", layer=layer, singular_values=np.linspace(2, 1, 50_000).tolist()))
    writer.commit(scan_values())
    metadata = pq.read_metadata(Path(store.url, "vectors", "one.parquet"))
    assert metadata.num_rows == 450_000
    assert all(100_000 <= metadata.row_group(i).num_rows <= 1_000_000 for i in range(metadata.num_row_groups))
    assert metadata.num_row_groups == 2


def test_staged_holds_the_keys_of_finished_matrices_only(store: Store) -> None:
    writer = begin(store)
    stage(writer, Matrix(tensor="ü/../ \n'x'"))
    writer.stage_failure("broken", failure("one", "broken"))
    assert begin(store).staged() == {"ü/../ \n'x'/None/None"}


def test_a_matrix_whose_part_was_not_written_is_not_finished(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = StoreFiles.write_bytes

    def killed(self: StoreFiles, path: str, *rest: object, **options: object) -> None:
        if "/finished/" in path:
            raise KeyboardInterrupt
        write(self, path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StoreFiles, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            stage(begin(store), Matrix())
    assert begin(store).staged() == set()
    assert store.unfinished() == []


def test_a_success_removes_the_failure_of_the_same_key(store: Store) -> None:
    writer = begin(store)
    matrix = Matrix()
    writer.stage_failure(matrix.key, failure("one", matrix.tensor))
    stage(writer, matrix)
    writer.commit(scan_values())
    assert store.sql("from failures").num_rows == 0
    assert store.sql("from matrices").num_rows == 1


def test_a_late_failure_of_a_finished_matrix_does_not_count(store: Store) -> None:
    writer = begin(store)
    stage(writer, Matrix())
    begin(store).stage_failure(Matrix().key, failure("one", "from a slower driver"))
    writer.commit(scan_values())
    assert store.sql("from failures").num_rows == 0


def test_unfinished_scans_are_listed_and_not_read(store: Store) -> None:
    writer = begin(store, "two")
    stage(writer, Matrix())
    stage(writer, Matrix(tensor="other"))
    writer.stage_failure("broken", failure("two", "broken"))
    assert store.committed() == []
    assert store.scan_row("two") is None
    [unfinished] = store.unfinished()
    assert (unfinished.scan_id, unfinished.model, unfinished.parts, unfinished.failures) == ("two", "org/model", 2, 1)
    assert store.sql("from all_matrices").num_rows == 0
    writer.commit(scan_values())
    assert store.unfinished() == []
    assert store.committed() == ["two"]


def test_a_scan_of_nothing_can_be_committed(store: Store) -> None:
    begin(store).commit(scan_values())
    row = store.scan_row("one")
    assert row is not None
    assert (row["matrices"], row["vectors"], row["failed"]) == (0, 0, 0)
    assert store.sql("from matrices").num_rows == 0


def test_a_scan_with_failures_only_can_be_committed(store: Store) -> None:
    writer = begin(store)
    writer.stage_failure("a", failure("one", "a"))
    assert store.unfinished()[0].model == "org/model"
    writer.commit(scan_values())
    assert store.sql("select tensor from failures").to_pylist() == [{"tensor": "a"}]


def test_committing_twice_changes_nothing(store: Store) -> None:
    writer = begin(store)
    stage(writer, Matrix())
    writer.commit(scan_values())
    before = {path: Path(store.url, path).read_bytes() for path in files_of(store)}
    writer.commit(scan_values(hours=5))
    begin(store).commit(scan_values(hours=6))
    assert {path: Path(store.url, path).read_bytes() for path in files_of(store)} == before


def test_discard_forgets_what_was_staged(store: Store) -> None:
    writer = begin(store)
    stage(writer, Matrix())
    writer.discard()
    writer.discard()
    assert writer.staged() == set()
    assert files_of(store) == []
    writer.commit(scan_values())
    assert store.sql("select matrices from scans").to_pylist() == [{"matrices": 0}]


def test_scanning_again_by_force_replaces_the_result(store: Store) -> None:
    add_scan(store, "one", [Matrix(), Matrix(tensor="gone")], failed=["x"])
    assert store.sql("select count(*) as n from vectors").to_pylist() == [{"n": 8}]
    again = begin(store)
    again.discard()
    assert again.staged() == set()
    stage(again, Matrix(singular_values=(9.0, 8.0)))
    assert store.sql("select count(*) as n from vectors").to_pylist() == [{"n": 8}]
    again.commit(scan_values(hours=1))
    assert store.sql("select singular_value as s from vectors").to_pylist() == [{"s": 9.0}, {"s": 8.0}]
    assert store.sql("select matrices, failed from scans").to_pylist() == [{"matrices": 1, "failed": 0}]
    assert store.sql("from failures").num_rows == 0


class Killed(BaseException):
    """Represents SIGKILL: nothing catches it."""


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count every change of a file as a step; the one after `steps` is not done."""
    done = 0

    def counting(change: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            nonlocal done
            if done == steps:
                raise Killed
            done += 1
            return change(*arguments, **named)

        return counted

    monkeypatch.setattr(os, "replace", counting(os.replace))
    monkeypatch.setattr(os, "fsync", counting(os.fsync))
    monkeypatch.setattr(os, "rmdir", counting(os.rmdir))
    monkeypatch.setattr(os, "unlink", counting(os.unlink))
    monkeypatch.setattr(Path, "rename", counting(Path.rename))
    return lambda: done


@pytest.mark.parametrize("forced", [False, True], ids=["first scan", "scan by force"])
def test_a_commit_killed_at_any_step_leaves_a_store_that_can_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    parts = SOME[:2]
    steps = 0
    while True:
        store = open_store(str(tmp_path / f"killed after {steps}"), create=True)
        if forced:
            add_scan(store, "one", [Matrix(tensor="old")])
        writer = begin(store)
        for matrix in parts:
            stage(writer, matrix)
        killed = False
        with monkeypatch.context() as patch:
            killed_after(steps, patch)
            try:
                writer.commit(scan_values(hours=1))
            except Killed:
                killed = True
        shutil.rmtree(tmp_path / f"killed after {steps}" / "leases", ignore_errors=True)  # as if its process were dead
        row = store.scan_row("one")
        if row is not None and not (forced and row["matrices"] == 1):
            # Committed: complete, whatever is left of the staging folder.
            assert store.sql("select count(*) as n from vectors").to_pylist() == [{"n": 8}]
        if killed and row is None:
            assert store.sql("from matrices").num_rows == 0
            assert begin(store).staged() == {matrix.key for matrix in parts}
        begin(store).commit(scan_values(hours=2))
        assert store.sql("select matrices, vectors from scans").to_pylist() == [{"matrices": 2, "vectors": 8}]
        assert store.sql("select count(*) as n from vectors").to_pylist() == [{"n": 8}]
        assert store.sql("select count(*) as n from matrices").to_pylist() == [{"n": 2}]
        assert store.unfinished() == []
        if not killed:
            break
        steps += 1
    assert steps > 10


def test_two_writers_of_one_scan_end_with_one_complete_result(store: Store) -> None:
    first, second = begin(store), begin(open_store(store.url))
    for matrix in SOME[:4]:
        stage(first, matrix)
    for matrix in SOME[2:]:
        stage(second, matrix)
    first.commit(scan_values(hours=1))
    after_first = store.scan_row("one")
    second.commit(scan_values(hours=2))
    assert store.scan_row("one") == after_first
    assert store.sql("select count(*) as n from vectors").to_pylist() == [{"n": 24}]
    assert files_of(store) == [f"{name}/one.parquet" for name in ("failures", "matrices", "scans", "vectors")]


def two_at_once(url: str, moment: str) -> tuple[bool, bool]:
    """Two copies of one content under provisional ids: the second is to be committed when the first has reached a moment.

    Returns:
        Whether the result of the first stands, and whether that of the second does.
    """

    def staged(own: str, seconds: float) -> ScanWriter:
        writer = begin(open_store(url, create=True), own)
        stage(writer, Matrix(more={"seconds": seconds}))
        writer.become("one", "r1")
        return writer

    first, second = staged("provisional-a", 0.5), staged("provisional-b", 0.7)
    stand: dict[str, bool] = {}
    other = threading.Thread(target=lambda: stand.update(second=second.commit(scan_values(hours=2))))
    reached = getattr(first, moment)

    def disturbed(*arguments: object) -> object:
        before = None if moment == "_write_row" else reached(*arguments)
        other.start()
        other.join(2.0)  # it waits for the first; without waiting it would have ended
        return before or reached(*arguments)

    setattr(first, moment, disturbed)
    stand["first"] = first.commit(scan_values(hours=1))
    other.join()
    return stand["first"], stand["second"]


def check_one_of_two(store: Store) -> None:
    assert {found.state for found in store.verify()} == {"whole"}
    [row] = store.sql("select seconds, hour(finished_at) as hour from scans").to_pylist()
    assert row == {"seconds": 1.5, "hour": 13}, "the first stands"
    assert store.sql("select seconds from matrices").to_pylist() == [{"seconds": 0.5}]
    assert store.unfinished() == []
    assert store.files.names("leases", "") == []


@pytest.mark.parametrize("moment", ["_write_largest", "_write_row"])
def test_two_writers_of_one_content_in_two_folders_do_not_mix_their_files(store: Store, moment: str) -> None:
    assert two_at_once(store.url, moment) == (True, False)
    check_one_of_two(store)


def test_a_writer_that_was_overtaken_drops_its_parts(store: Store) -> None:
    """Whoever has parts in the same folder may lose them while it waits."""
    first, second = begin(store), begin(store)
    for matrix in SOME:
        stage(second, matrix)
    done: list[bool] = []
    with changing(store.files, "one"):
        other = threading.Thread(target=lambda: done.append(second.commit(scan_values(hours=2))))
        other.start()
        time.sleep(0.2)
        assert done == []
    other.join()
    assert done == [True]
    assert not first.commit(scan_values(hours=1))
    assert store.sql("select vectors from scans").to_pylist() == [{"vectors": 24}]
    assert store.sql("select count(*) as n from vectors").to_pylist() == [{"n": 24}]
    assert not [path for path in files_of(store) if path.endswith((".tmp", ".lock"))]


def test_who_has_lost_the_lease_of_a_result_does_not_write_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process was suspended, and another one has taken over."""
    monkeypatch.setattr("scanner.store.changing.LENGTH", timedelta(seconds=1))
    writer = begin(store)
    stage(writer, Matrix())
    largest = writer._largest_table

    def suspended(name: str) -> pa.Table:
        [path] = Path(store.url, "leases").glob("result-*.json")
        path.write_bytes(b"of another")
        time.sleep(1.2)
        return largest(name)

    writer._largest_table = suspended  # type: ignore[method-assign]
    with pytest.raises(LeaseHeldError, match="run the same command again"):
        writer.commit(scan_values())
    assert store.committed() == []
    assert not Path(store.url, "matrices", "one.parquet").exists()


def test_writers_of_one_scan_in_two_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    open_store(url, create=True)
    errors: list[BaseException] = []

    def drive() -> None:
        try:
            writer = begin(open_store(url))
            for matrix in SOME:
                stage(writer, matrix)
            writer.commit(scan_values())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = open_store(url)
    assert store.sql("select matrices, vectors from scans").to_pylist() == [{"matrices": 6, "vectors": 24}]
    assert store.sql("select count(*) as n from vectors").to_pylist() == [{"n": 24}]


def test_a_part_is_written_although_another_driver_removes_its_folder_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = begin(store), begin(store)
    replace_file = os.replace

    def after_removal(source: object, target: object) -> None:
        monkeypatch.setattr(os, "replace", replace_file)
        second.discard()
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", after_removal)
    stage(first, Matrix())
    assert first.staged() == {Matrix().key}


def test_parts_removed_by_a_run_with_force_are_not_committed_as_if_they_had_never_been(store: Store) -> None:
    first, second = begin(store), begin(store)
    stage(first, Matrix())
    second.discard()
    stage(first, Matrix(tensor="later"))
    with pytest.raises(StoreError, match="'one' were removed while it ran"):
        first.commit(scan_values())
    assert store.committed() == []


def test_a_commit_leaves_alone_what_a_newer_run_by_force_has_staged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = begin(store)
    stage(slow, Matrix())
    newer: list[ScanWriter] = []
    write_scan = ScanWriter._write_row

    def then_force(self: ScanWriter, *rest: object) -> None:
        write_scan(self, *rest)
        newer.append(begin(store))
        stage(newer[0], Matrix(tensor="newer"))

    monkeypatch.setattr(ScanWriter, "_write_row", then_force)
    slow.commit(scan_values())
    monkeypatch.setattr(ScanWriter, "_write_row", write_scan)
    newer[0].commit(scan_values(hours=1))
    assert store.sql("select tensor from matrices").to_pylist() == [{"tensor": "newer"}]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errno.ENOSPC, "is full: No space left on device"),
        (errno.EDQUOT, "is full: "),
        (errno.EACCES, "is not writable: Permission denied"),
        (errno.EROFS, "is not writable: Read-only file system"),
        (errno.EIO, "cannot be written: Input/output error"),
    ],
)
def test_a_store_that_cannot_be_written_says_what_to_do(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: int, said: str
) -> None:
    writer = begin(store)

    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(StoreError, match="another `store`") as refused:
            stage(writer, Matrix())
    assert f"store '{store.url}' {said}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert files_of(store) == []
    stage(writer, Matrix())
    writer.commit(scan_values())
    assert store.committed() == ["one"]


def test_a_disk_that_is_full_during_the_merge_leaves_the_scan_unfinished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin(store)
    stage(writer, Matrix())
    replace_file = os.replace

    def full(source: object, target: object) -> None:
        if "/vectors/one" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StoreError, match="is full"):
            writer.commit(scan_values())
    assert store.committed() == []
    assert [scan.parts for scan in store.unfinished()] == [1]
    begin(store).commit(scan_values())
    assert store.sql("from vectors").num_rows == 4


@pytest.mark.parametrize("scan_id", ["", "../x", "a/b", ".hidden", "a b", "x" * 129, "a\n"])
def test_an_unsafe_scan_id_is_refused(store: Store, scan_id: str) -> None:
    with pytest.raises(ValueError, match="scan id"):
        begin(store, scan_id)
    assert store.scan_row(scan_id) is None


def test_rows_of_another_scan_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="other scans"):
        begin(store).stage("q", *Matrix().tables("two", "org/model", "r1"))


def test_a_part_holds_one_matrix(store: Store) -> None:
    matrices, vectors = Matrix().tables("one", "org/model", "r1")
    with pytest.raises(ValueError, match="one row"):
        begin(store).stage("q", table("matrices", matrices.to_pylist() * 2), vectors)


def test_an_unknown_column_of_the_scan_s_row_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="modle"):
        begin(store).commit(scan_values() | {"modle": "x"})


@pytest.mark.parametrize("damage", [b"", b"PAR1 nonsense", None])
def test_a_part_that_a_power_cut_damaged_is_scanned_again(store: Store, damage: bytes | None) -> None:
    writer = begin(store)
    matrix = Matrix()
    stage(writer, matrix)
    [part] = Path(store.url, "staging", "one", "first", "finished").iterdir()
    part.write_bytes(part.read_bytes()[:-7] if damage is None else damage)
    again = begin(store)
    assert again.staged() == set()
    stage(again, matrix)
    assert begin(store).staged() == {matrix.key}
    again.commit(scan_values())
    assert store.scan_row("one") is not None


def test_staging_a_matrix_again_replaces_it(store: Store) -> None:
    writer = begin(store)
    stage(writer, Matrix())
    stage(writer, replace(Matrix(), singular_values=(7.0, 6.0)))
    writer.commit(scan_values())
    assert store.sql("select singular_value as s from vectors").to_pylist() == [{"s": 7.0}, {"s": 6.0}]
