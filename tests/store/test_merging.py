"""Merging stores: every result once, checked on the way, and nothing whole replaced by something damaged."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from scanner.cli.main import application
from scanner.errors import ConfigError, StoreError
from scanner.store import Store, open_store
from scanner.store.checksums import FileRecord
from scanner.store.compaction import compact
from scanner.store.files import StoreFiles
from scanner.store.lease import lease
from scanner.store.merging import _Merge, merge
from scanner.store.removal import plan_removal, remove
from tests.fixtures.store import asked, differences, unpack

from .rows import Matrix, add_scan, scan_values, table
from .test_compaction import filled, rows


def states(source: Store, into: Store) -> dict[str, str]:
    return {f"{one.table}/{one.result}": one.state for one in merge(source, into)}


@pytest.mark.parametrize("compacted", [False, True])
def test_a_merged_store_answers_like_its_source(tmp_path: Path, compacted: bool) -> None:
    source = open_store(str(unpack(tmp_path) / "store"))
    expected = asked(source)
    if compacted:
        compact(source, grace=timedelta(0))
    into = open_store(str(tmp_path / "into"), create=True)
    assert {one.state for one in merge(source, into)} == {"copied"}
    found = asked(into)
    assert {name: told for name in expected if (told := differences(found[name], expected[name], 1e-12))} == {}
    assert not [one for one in into.verify() if one.state == "damaged"]
    written = {path: path.stat().st_mtime_ns for path in Path(into.url).rglob("*.parquet")}
    assert {one.state for one in merge(source, into)} == {"kept"}
    assert {path: path.stat().st_mtime_ns for path in Path(into.url).rglob("*.parquet")} == written


def test_what_is_whole_is_kept_and_what_is_damaged_is_not_copied(tmp_path: Path) -> None:
    source, into = (filled(open_store(str(tmp_path / name), create=True)) for name in ("source", "into"))
    add_scan(source, "only", [Matrix()], model="org/only")
    drawn = {"scan_id": "only", "model": "org/only", "tensor": "t", "role": "query", "rows": 1, "cols": 1, "k": 0}
    drawn |= {"ensemble": "sign", "seed": 0, "singular_value": 1.0}
    source.write_matrix_control(table("matrix_controls", [drawn]), "only", "t", "sign", 0)
    add_scan(source, "broken", [Matrix()], model="org/broken")
    damaged = Path(source.url, "vectors", "broken.parquet")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    Path(source.url, "matrices", "s1.parquet").write_bytes(b"")
    Path(into.url, "matrices", "s0.parquet").write_bytes(b"")
    into.writer("only", method={}, model="org/only").stage("m", *Matrix().tables("only", "org/only", "r1"))
    found = states(source, into)
    assert found["scans/broken"] == "damaged"
    assert found["scans/s0"] == "replaced"
    assert found["scans/s1"] == found["scans/s2"] == "kept"
    assert found["scans/only"] == "busy"
    into.writer("only", method={}, model="org/only").discard()
    assert states(source, into)["scans/only"] == "copied"
    assert into.sql("from matrix_controls").to_pylist() == source.sql("from matrix_controls").to_pylist()
    assert into.has_matrix_control("only", "t", "sign", 0)
    assert sorted(into.committed()) == ["only", *(f"s{index}" for index in range(6))]
    assert not [one for one in into.verify() if one.state == "damaged"]
    assert rows(into)["pairs"] == rows(open_store(into.url))["pairs"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = filled(open_store(str(tmp_path / "source"), create=True), 2)
    with pytest.raises(ConfigError, match="`into`"):
        merge(source, source)
    arguments = ["merge", source.url, "--into", str(tmp_path / "new" / "store"), "--format", "csv"]
    with pytest.raises(SystemExit) as ended:
        application()(arguments, prog_name="rmtscan")
    assert ended.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].replace('"', "") == "source,table,copied,kept,replaced,damaged,busy"
    assert len(shown) == 3
    assert open_store(str(tmp_path / "new" / "store")).sql("from scans").num_rows == 2


def test_a_store_that_is_being_compacted_is_not_merged_into(tmp_path: Path) -> None:
    source, into = (filled(open_store(str(tmp_path / name), create=True)) for name in ("source", "into"))
    with (
        lease(into.files, "maintenance", doing="compacted"),
        pytest.raises(StoreError, match="is being compacted by process"),
    ):
        merge(source, into)
    assert {one.state for one in merge(source, into)} == {"kept"}


def test_a_commit_waits_for_the_copy_of_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts are staged under a provisional id, so nothing tells that it is being computed."""
    source, into = (open_store(str(tmp_path / name), create=True) for name in ("source", "into"))
    add_scan(source, "one", [Matrix(more={"seconds": 0.5})])
    writer = into.writer("provisional-one", method={}, model="org/model")
    writer.stage("m", *Matrix(more={"seconds": 0.7}).tables("provisional-one", "org/model", ""))
    writer.become("one", "r1")
    done: list[bool] = []
    other = threading.Thread(target=lambda: done.append(writer.commit(scan_values())))
    write = StoreFiles.write_bytes

    def slowly(self: StoreFiles, path: str, *rest: object, **options: object) -> None:
        if path == "scans/one.parquet" and not other.ident:  # the copy is complete but for its row
            other.start()
            other.join(2.0)
        write(self, path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreFiles, "write_bytes", slowly)
    assert [one.state for one in merge(source, into)] == ["copied"]
    other.join()
    assert done == [False]
    assert {one.state for one in into.verify()} == {"whole"}
    assert into.sql("select seconds from matrices").to_pylist() == [{"seconds": 0.5}]


@pytest.mark.parametrize("change", ["compacted", "again", "removed"])
def test_a_source_that_changes_while_it_is_copied_is_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    source = filled(open_store(str(tmp_path / "source"), create=True))
    into = open_store(str(tmp_path / "into"), create=True)
    copy = _Merge._copy
    changed: list[str] = []

    def disturbed(self: _Merge, path: str, record: FileRecord | None) -> FileRecord:
        if path.startswith("vectors/s0") and not changed:
            changed.append(path)
            if change == "compacted":
                compact(source, grace=timedelta(0))
            elif change == "removed":
                remove(source, plan_removal(source, ["s0"]))
            else:
                again = open_store(source.url).writer("s0", method={}, model="org/m0")
                again.stage("m", *Matrix(tensor="again").tables("s0", "org/m0", "r1"))
                again.commit(scan_values(hours=9))
        return copy(self, path, record)

    monkeypatch.setattr(_Merge, "_copy", disturbed)
    found = states(source, into)
    assert changed
    expected = {"scans/s0": "damaged"} if change == "removed" else {}
    assert {name: state for name, state in found.items() if state != "copied"} == expected
    assert rows(into) == rows(open_store(source.url))
    assert "damaged" not in {one.state for one in into.verify()}
