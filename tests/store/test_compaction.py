"""Compaction: the same rows in every query before, during and after, whatever fails in between."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanner.errors import StoreError, StoreWarning
from scanner.store import Store, open_store
from scanner.store.compaction import Compaction, _Run, compact, write_catalog
from scanner.store.files import StoreFiles
from scanner.store.groups import NOTICE, Catalog, catalog
from scanner.store.lease import lease
from tests.fixtures.store import asked as every_query
from tests.fixtures.store import differences, ordered, unpack

from .rows import Matrix, Pair, add_comparison, add_scan, scan_values

NO_GRACE = timedelta(0)
RELATIONS = ("scans", "vectors", "failures", "pairs")
Rows = dict[str, list[str]]


def rows(store: Store) -> Rows:
    found = {name: store.sql(f"from {name}") for name in RELATIONS}
    found["scans"] = found["scans"].drop_columns("files")
    return {name: sorted(map(repr, table.to_pylist())) for name, table in found.items()}


def filled(store: Store, count: int = 6) -> Store:
    """Scans of several models and revisions, of which some are repeated in part; two comparisons of the same models."""
    for index in range(count):
        matrices = [Matrix(tensor=f"t{one}", singular_values=(4.0 + index, 1.0)) for one in range(1 + index % 3)]
        failed = ["lost"] if index % 4 == 2 else []
        add_scan(store, f"s{index}", matrices, model=f"org/m{index % 3}", hours=index, failed=failed)
    for index in range(2):
        add_comparison(store, f"p{index}", [Pair(), Pair(tensor="x")][index:], scans=("s0", "s1"), hours=index)
    return store


def moved(done: list[Compaction]) -> list[int]:
    return [one.results for one in done]


def files(store: Store, *tables: str) -> list[str]:
    return sorted(
        f"{table}/{path.name}" for table in tables for path in Path(store.url, table).glob("*") if path.stem != NOTICE
    )


def test_every_named_query_answers_as_before(tmp_path: Path) -> None:
    fixture = open_store(str(unpack(tmp_path) / "store"))
    many = filled(open_store(str(tmp_path / "many"), create=True), 50)

    def once(store: Store) -> dict[str, list[dict[str, Any]]]:
        return {query.name: ordered(store.query(query.name)) for query in store.queries()}

    for store, asked in ((fixture, every_query), (many, once)):
        before = asked(store)
        compact(store, grace=NO_GRACE)
        assert len(files(store, "scans", "comparisons", "pairs")) <= 3, "nothing was compacted"
        after = asked(open_store(store.url))
        assert {*after} == {*before}
        # The order of summation may differ in the last digit.
        assert {name: told for name in before if (told := differences(after[name], before[name], 1e-12))} == {}
        assert not [found for found in store.verify() if found.state == "damaged"]


def test_a_grouped_result_is_like_any_other(store: Store) -> None:
    filled(store)

    def told() -> list[Any]:
        per_scan = [
            (one, store.scan_row(one), store.file_rows("matrices", one), store.file_rows("failures", one))
            for one in store.committed()
        ]
        vectors = [store.vector_rows(one, ["k", "u_p"]).to_pylist() for one in store.committed()]
        writer = store.writer("s4", method={}, model="org/m1")
        return [per_scan, vectors, store.file_rows("pairs", "p0"), store.problem("scans", "s1"), writer._generation]

    before = told()
    compact(store, grace=NO_GRACE)
    assert told() == before
    assert store.writer("s4", method={}, model="org/m1").committed
    assert store.problem("scans", "gone") is not None
    assert store.scan_row("gone") is None


def test_a_compaction_that_ends_at_any_point_changes_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {name: getattr(StoreFiles, name) for name in ("write_bytes", "remove", "replacing")}
    first = open_store(str(tmp_path / "first"), create=True)
    for index in range(2):
        add_scan(first, f"s{index}", [Matrix(tensor=f"t{index}")], hours=index, failed=["lost"][index:])
    expected = rows(first)
    for limit in range(1, 200):
        shutil.copytree(first.url, tmp_path / str(limit))
        store, reader = (open_store(str(tmp_path / str(limit))) for _ in range(2))
        assert rows(reader) == expected
        done = 0

        def counted(name: str) -> Callable[..., Any]:
            def call(self: StoreFiles, path: str, *arguments: Any, **more: Any) -> Any:
                nonlocal done
                if not path.startswith("leases/"):
                    done += 1
                    if done > limit:  # noqa: B023
                        raise InterruptedError
                return calls[name](self, path, *arguments, **more)

            return call

        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(StoreFiles, name, counted(name))
            try:
                compact(store, grace=NO_GRACE)
                ended = True
            except InterruptedError:
                ended = False
        assert rows(reader) == expected, limit
        if limit % 4 == 1 or ended:
            compact(store, grace=NO_GRACE)
            assert rows(reader) == expected
            compacted = files(store, "scans", "matrices", "vectors", "failures", "comparisons", "pairs")
            assert len(compacted) == 3, compacted
        if ended:
            return
    raise AssertionError("it never ended")


def test_replaced_files_stay_until_nobody_reads_them(store: Store) -> None:
    filled(store)
    reader = open_store(store.url)
    before = rows(reader)
    [scans, _] = compact(store, grace=timedelta(hours=1))
    assert scans.results == 6
    assert files(store, "scans") == []
    assert scans.waiting == len([path for path in files(store, "matrices", "vectors", "failures") if "/s" in path]) > 0
    assert rows(reader) == before
    add_scan(store, "late", [Matrix()], model="org/late")
    compact(store, grace=timedelta(hours=1))
    assert [path for path in files(store, "vectors") if "/s" in path], "removed before the time was over"
    compact(store, grace=NO_GRACE)
    assert not [path for path in files(store, "matrices", "vectors") if "compacted" not in path]


def test_a_scan_that_is_repeated_after_compaction_counts(store: Store) -> None:
    filled(store)
    compact(store, grace=NO_GRACE)
    writer = store.writer("s5", method={"sigma": "median"}, model="org/m2")
    matrix = Matrix(tensor="t0", singular_values=(99.0, 1.0))
    writer.stage(matrix.key, *matrix.tables("s5", "org/m2", "r1"))
    assert compact(store, grace=NO_GRACE)[0].left == (), "it has no file of its own yet"
    writer.commit(scan_values(hours=5))
    for _ in range(2):
        found = store.sql("from all_vectors where scan_id = 's5'")["singular_value"].to_pylist()
        assert sorted(found) == [1.0, 99.0]
        assert store.sql("from scans").num_rows == 6
        compact(store, grace=NO_GRACE)
    group = catalog(StoreFiles(store.url), "scans")
    assert len(group.groups) == 1, "the group with the repeated scan was not written again"


def test_failed_matrices_of_a_grouped_scan_are_tried_again(store: Store) -> None:
    filled(store)
    compact(store, grace=NO_GRACE)
    writer = store.writer("s2", method={"sigma": "median"}, model="org/m2")
    keys = {("t0", "query", None, None): "t0", ("t1", "query", None, None): "t1", ("t2", "query", None, None): "t2"}
    writer.restage(keys)
    assert writer.staged() == {"t0", "t1", "t2"}
    lost = Matrix(tensor="lost")
    writer.stage("lost", *lost.tables("s2", "org/m2", "r1"))
    writer.commit(scan_values(hours=2))
    row = store.scan_row("s2")
    assert row is not None
    assert (row["matrices"], row["failed"]) == (4, 0)


def test_what_is_left_out_is_said(store: Store) -> None:
    filled(store)
    Path(store.url, "vectors", "s1.parquet").write_bytes(b"x")
    store.writer("s3", method={}, model="org/m0").stage("t0", *Matrix().tables("s3", "org/m0", "r1"))
    [scans, _] = compact(store, grace=NO_GRACE)
    assert {result: why.split()[-1] for result, why in scans.left} == {"s1": "written", "s3": "computed"}
    assert files(store, "scans") == ["scans/s1.parquet", "scans/s3.parquet"]
    [scans, _] = compact(filled(open_store(store.url + "2", create=True)), older_than=timedelta(days=365 * 50))
    assert (scans.results, len(scans.left)) == (0, 6)


def test_small_groups_are_merged_and_large_ones_are_not(store: Store) -> None:
    for night in range(6):
        add_scan(store, f"n{night}", [Matrix()], model=f"org/n{night}", hours=night)
        compact(store, grace=NO_GRACE)
    assert len(catalog(StoreFiles(store.url), "scans").groups) <= 3
    assert store.sql("from scans").num_rows == 6
    filled(store)
    [scans, _] = compact(store, grace=NO_GRACE, group_bytes=1)
    assert scans.groups >= 6, "one group per scan if none may be larger"
    assert rows(store)["scans"] == rows(open_store(store.url))["scans"]


def test_a_dry_run_changes_nothing(store: Store) -> None:
    filled(store)
    before = sorted(Path(store.url).rglob("*"))
    assert moved(compact(store, dry_run=True)) == [6, 2]
    assert sorted(Path(store.url).rglob("*")) == before


def test_row_groups_are_pruned_by_scan(store: Store) -> None:
    filled(store)
    compact(store, grace=NO_GRACE)
    [path] = Path(store.url, "vectors").glob("compacted-*")
    found = pq.ParquetFile(path)
    assert found.read()["scan_id"].to_pylist() == sorted(found.read()["scan_id"].to_pylist())
    assert found.schema_arrow.metadata[b"rmtscan.schema_version"] == b"2"
    statistics = found.metadata.row_group(0).column(0).statistics
    assert (statistics.min, statistics.max) == ("s0", "s5")


def test_a_damaged_group_is_named_and_left_out(store: Store) -> None:
    filled(store)
    compact(store, grace=NO_GRACE)
    add_scan(store, "z", [Matrix()], model="org/z")
    [path] = Path(store.url, "vectors").glob("compacted-*")
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-40])
    found = [one for one in store.verify() if one.state == "damaged"]
    assert [one.file for one in found] == [f"vectors/{path.name}"]
    assert "org/m0" in found[0].remedy
    assert "force" in found[0].remedy
    with pytest.warns(StoreWarning, match="left out"):
        assert {row["model"] for row in store.sql("from vectors").to_pylist()} == {"org/z"}
    assert "bytes instead of" in str(store.problem("scans", "s1"))
    assert compact(store, grace=NO_GRACE)[0].left, "it was merged although it is damaged"
    for index in range(6):  # the remedy
        add_scan(store, f"s{index}", [Matrix()], model=f"org/m{index % 3}", hours=index)
    assert store.sql("select distinct scan_id from all_vectors").num_rows == 7


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_catalog_is_an_error_and_never_fewer_rows(store: Store, damage: bytes | None) -> None:
    filled(store)
    compact(store, grace=NO_GRACE)
    [path] = Path(store.url, "groups").glob("scans-*")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content) if damage is None else damage)
    with pytest.raises(StoreError, match="damaged"):
        open_store(store.url).query("scans")
    assert "damaged" in {found.state for found in store.verify()}


def test_a_catalog_of_a_newer_version_is_refused(store: Store) -> None:
    filled(store)
    compact(store, grace=NO_GRACE)
    [path] = Path(store.url, "groups").glob("scans-*")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"rmtscan.schema_version": b"3"}), path)
    with pytest.raises(StoreError, match="newer version"):
        open_store(store.url).query("scans")


def test_earlier_versions_stop_at_the_notices(store: Store) -> None:
    """0.1 reads every file of `scans`; development versions of 0.2 refuse a name with spaces in `controls`."""
    filled(store)
    compact(store, grace=NO_GRACE)
    with pytest.raises(pa.ArrowInvalid):
        pq.ParquetFile(Path(store.url, "scans", f"{NOTICE}.parquet"))
    assert pq.read_table(Path(store.url, "controls", f"{NOTICE}.parquet")).num_rows == 0
    assert " " in NOTICE
    assert len(NOTICE) <= 80


def test_catalogs_of_two_processes_at_once_give_no_result_twice(store: Store) -> None:
    filled(store)
    compact(store, grace=NO_GRACE)
    before = rows(store)
    of_store = StoreFiles(store.url)
    write_catalog(of_store, catalog(of_store, "scans"), replaces=catalog(StoreFiles(store.url + "x"), "scans"))
    assert len(list(Path(store.url, "groups").glob("scans-*"))) == 2
    assert rows(open_store(store.url)) == before
    compact(store, grace=NO_GRACE)
    assert len(list(Path(store.url, "groups").glob("scans-*"))) == 1
    assert rows(store) == before


@contextmanager
def held(store: Store) -> Iterator[None]:
    with lease(StoreFiles(store.url), "maintenance", doing="compacted"):
        yield


def test_only_one_process_compacts_and_a_dead_one_does_not_count(store: Store) -> None:
    filled(store)
    with held(store), pytest.raises(StoreError, match="is being compacted by process"):
        compact(store)
    path = Path(store.url, "leases", "maintenance.json")
    assert not path.exists()
    with held(store):
        values = json.loads(path.read_bytes())
    path.write_text(json.dumps(values | {"pid": 2**22 + 1}))
    assert moved(compact(store, grace=NO_GRACE)) == [6, 2]
    path.write_text(json.dumps(values | {"host": "other", "space": "", "until": "2020-01-01T00:00:00+00:00"}))
    os.utime(path, (0, 0))
    compact(store, grace=NO_GRACE)
    assert not path.exists()


def forced(store: Store, scan_id: str) -> threading.Thread:
    """A driver that commits a scan again, whose parts have a provisional id: nothing tells that it is at work."""
    writer = open_store(store.url).writer("provisional-x", method={"sigma": "median"}, model="org/m0")
    again = Matrix(tensor="again")
    writer.stage(again.key, *again.tables("provisional-x", "org/m0", ""))
    writer.become(scan_id, "r1")
    return threading.Thread(target=lambda: writer.commit(scan_values(hours=90)))


def check_again(store: Store, scan_id: str) -> None:
    opened = open_store(store.url)
    found = opened.sql("select tensor from all_matrices where scan_id = ?", [scan_id]).to_pylist()
    assert found == [{"tensor": "again"}]
    assert not [one for one in opened.verify() if one.state == "damaged"]


def test_the_row_of_a_scan_that_is_committed_again_meanwhile_is_not_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    other, removing = forced(store, "s0"), []
    remove_rows, read = _Run._remove_rows, StoreFiles.read_bytes
    monkeypatch.setattr(_Run, "_remove_rows", lambda *given: (removing.append(True), remove_rows(*given))[1])

    def slowly(self: StoreFiles, path: str) -> bytes | None:
        content = read(self, path)
        if removing and path == "scans/s0.parquet" and not other.ident:
            other.start()
            other.join(2.0)
        return content

    monkeypatch.setattr(StoreFiles, "read_bytes", slowly)
    compact(store)
    other.join()
    check_again(store, "s0")


def test_files_of_a_scan_that_is_committed_again_meanwhile_are_not_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    compact(store)
    other, listed = forced(store, "s0"), _Run._obsolete

    def late(self: _Run, found: Catalog) -> list[str]:
        paths = listed(self, found)
        if not other.ident:
            assert "vectors/s0.parquet" in paths
            other.start()
            other.join()
        return paths

    monkeypatch.setattr(_Run, "_obsolete", late)
    compact(store, grace=NO_GRACE)
    check_again(store, "s0")
    assert not Path(store.url, "vectors", "s1.parquet").exists(), "the others were removed"
