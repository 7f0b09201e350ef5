"""Merging stores: every result once, checked on the way, and nothing whole replaced by something damaged."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from scanner.cli.main import application
from scanner.errors import ConfigError
from scanner.store import Store, open_store
from scanner.store.compaction import compact
from scanner.store.merging import merge
from tests.fixtures.store import asked, differences, unpack

from .rows import Matrix, add_scan, table
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
