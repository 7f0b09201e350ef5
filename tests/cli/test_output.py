"""Every output format holds the same rows, stdout holds nothing else, and names in a checkpoint cannot control the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.cli.output import note_skipped, write
from scanner.store import open_store
from tests.store.rows import Matrix, add_scan

from .conftest import Run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = open_store(str(tmp_path / "store"), create=True)
    matrices = [Matrix(tensor=f"layer.{i}.query", layer=i, u_p=(0.25, None, 1e-7, 1.0)) for i in range(3)]
    add_scan(made, "abc", [*matrices, Matrix(tensor='last, "quoted"\n\x1b[31mred', layer=None, role="other")])
    return tmp_path / "store"


def parsed(form: str, data: bytes) -> list[dict[str, Any]]:
    """The rows as another program reads them."""
    if form == "json":
        rows: list[dict[str, Any]] = json.loads(data)
        return rows
    if form == "parquet":
        return list(pq.read_table(io.BytesIO(data)).to_pylist())
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


QUERIES = [
    ["query", "scans"],
    ["query", "role_table"],
    ["query", "outliers"],
    ["sql", "SELECT * FROM vectors ORDER BY tensor, k"],
    [
        "sql",
        "SELECT role, sum(k) AS s, avg(u_p) AS p, max(finished_at) AS t FROM vectors JOIN scans USING (scan_id) "
        "GROUP BY role ORDER BY role",
    ],
    ["models"],
]


@pytest.mark.parametrize("query", QUERIES, ids=" ".join)
def test_json_csv_and_parquet_hold_the_same_rows(rmtscan: Run, store: Path, query: list[str]) -> None:
    found = {}
    for form in ("json", "csv", "parquet"):
        told = rmtscan(*query, "--store", store, "--format", form)
        assert (told.status, told.err) == (0, "")
        found[form] = parsed(form, told.out)
    truth = found["parquet"]
    assert truth
    assert len(found["json"]) == len(found["csv"]) == len(truth)
    for row, as_json, as_csv in zip(truth, found["json"], found["csv"], strict=True):
        assert list(row) == list(as_json) == list(as_csv)
        for name, value in row.items():
            _same(value, as_json[name])
            _same(value.replace(*STEERING) if isinstance(value, str) else value, as_csv[name] or None)


# A name in the store, and what a CSV file has in its place.
STEERING = ('last, "quoted"\n\x1b[31mred', r'last, "quoted"\n\x1b[31mred')


def _same(value: Any, written: Any) -> None:
    if value is None or written is None:
        assert written in (None, "")
        assert value in (None, "")
    elif isinstance(value, str):
        assert written == value
    elif isinstance(value, int | float) or not hasattr(value, "year"):
        assert float(written) == pytest.approx(float(value), rel=1e-7)
    else:
        assert str(written)[:19].replace("T", " ") == str(value)[:19]


def test_the_table_for_people_shows_names_but_not_what_steers_a_terminal(rmtscan: Run, store: Path) -> None:
    told = rmtscan("sql", "SELECT tensor, k, u_p FROM vectors WHERE k = 0 ORDER BY tensor", "--store", store)
    lines = told.out.decode().splitlines()
    assert (told.status, told.err) == (0, "")
    assert len(lines) == 2 + 4
    assert all(line.isprintable() for line in lines)
    assert r'last, "quoted"\n\x1b[31mred' in told.out.decode()


HOSTILE = "".join(map(chr, [*range(32), *range(127, 160), 0x2028, 0x202E, 0xFEFF]))
WAYS = {
    "column": "SELECT text FROM t",
    "expression": "SELECT text || tensor AS x FROM t",
    "enum": "SELECT text::ENUM('a', %s) AS x FROM t",
    "list": "SELECT [text] AS x FROM t",
    "struct": "SELECT {'x': text} AS x FROM t",
    "blob": "SELECT encode(text) AS x FROM t",
    "name": 'SELECT 1 AS "%s", 2 AS b FROM t',
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_no_format_for_a_terminal_holds_what_steers_it(rmtscan: Run, store: Path, way: str, form: str) -> None:
    quoted = " || ".join(f"chr({ord(char)})" for char in HOSTILE[1:])
    text = HOSTILE[1:]
    statement = f"WITH t AS (SELECT {quoted} AS text, tensor FROM matrices) {WAYS[way]}"
    if "%s" in statement:
        statement %= text if way == "name" else "'" + text + "'"
    told = rmtscan("sql", statement, "--store", store, "--format", form)
    assert told.status == 0, told.err
    assert all(line.isprintable() for line in told.out.decode().splitlines())
    assert told.out.decode().isascii() or form == "table"
    assert len(told.out.splitlines()) == (6 if form == "table" else 5 if form == "csv" else 4)


def test_a_long_table_says_that_it_is_cut_and_the_other_formats_are_not(rmtscan: Run, store: Path) -> None:
    told = rmtscan("sql", "SELECT range AS r FROM range(500)", "--store", store)
    assert len(told.out.splitlines()) == 202
    assert "300 more rows" in told.err
    for form in ("json", "csv", "parquet"):
        told = rmtscan("sql", "SELECT range AS r FROM range(500)", "--store", store, "--format", form)
        assert (len(parsed(form, told.out)), told.err) == (500, "")


@pytest.mark.parametrize("form", ["table", "json", "csv", "parquet"])
def test_no_rows_are_still_columns(rmtscan: Run, store: Path, form: str) -> None:
    told = rmtscan("sql", "SELECT tensor, k FROM vectors WHERE false", "--store", store, "--format", form)
    assert (told.status, told.err) == (0, "")
    if form == "parquet":
        assert pq.read_table(io.BytesIO(told.out)).column_names == ["tensor", "k"]
    elif form == "json":
        assert json.loads(told.out) == []
    else:
        assert b"tensor" in told.out


ODD = {
    "numbers that JSON does not have": "SELECT 'nan'::double AS a, 'inf'::double AS b, -'inf'::float AS c",
    "wide integers": "SELECT sum(k) AS a, 170141183460469231731687303715884105727::hugeint AS b FROM vectors",
    "nested": "SELECT [1, 2] AS a, map {'x': 1} AS b, {'y': [NULL, 'z']} AS c",
    "times": "SELECT INTERVAL 1 DAY AS a, DATE '2026-01-02' AS b, TIME '10:00' AS c, now() AS d",
    "bytes and truth": "SELECT 'a\\xFF'::blob AS a, true AS b, NULL AS c, uuid() AS d",
    "names that occur twice": "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a",
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("form", ["table", "json", "csv", "parquet"])
def test_every_type_that_sql_can_give_can_be_printed(rmtscan: Run, store: Path, case: str, form: str) -> None:
    told = rmtscan("sql", ODD[case], "--store", store, "--format", form)
    assert (told.status, told.err) == (0, "")
    if form == "table":
        assert len(told.out.splitlines()) == 3
        return
    [row] = parsed(form, told.out)
    if case == "names that occur twice":
        assert [int(value) for value in row.values()] == [1, 2, 3, 4]
        assert len(row) == 4
    if form == "json" and case == "wide integers":
        assert row == {"a": 4 * (0 + 1 + 2 + 3), "b": 2**127 - 1}
    if form == "json" and case == "nested":
        assert (row["a"], row["c"]) == ([1, 2], {"y": [None, "z"]})
    if form == "json" and case == "numbers that JSON does not have":
        assert row == {"a": None, "b": None, "c": None}
    if form == "csv" and case == "nested":
        assert json.loads(row["a"]) == [1, 2]


VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(width=64) | st.text()


@given(st.lists(VALUES, max_size=4), st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4))
def test_json_parses_back_whatever_the_values_and_names(values: list[Any], names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
        patch.setattr("sys.stdout", out)
        columns = [pa.array([value]) for value in (values * len(names))[: len(names)]] or [pa.nulls(1)] * len(names)
        write(pa.table(columns, names=names), "json")
        out.flush()
        text = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    [row] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(row) == len(names)
    for value, found in zip([column[0].as_py() for column in columns], row.values(), strict=True):
        assert found == (None if isinstance(value, float) and not math.isfinite(value) else value)


def test_reasons_beyond_the_most_frequent_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    note_skipped({f"factor of matrix {index}": 1 for index in range(20)} | {"1-D\x1b[2J": 5}, before="m: ")
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[1]) == ("  m: 5 skipped: 1-D\\x1b[2J", "  m: 1 skipped: factor of matrix 0")
    assert lines[12:] == ["  m: 9 skipped for 9 other reasons: rmtscan inspect lists them"]


@pytest.mark.parametrize("query", QUERIES, ids=" ".join)
@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_stdout_and_a_file_are_the_same_bytes(
    rmtscan: Run, store: Path, tmp_path: Path, query: list[str], form: str
) -> None:
    file = tmp_path / f"answer.{form}"
    told = rmtscan(*query, "--store", store, "-o", file)
    assert (told.status, told.out) == (0, b"")
    assert rmtscan(*query, "--store", store, "--format", form).out == file.read_bytes()
    again = rmtscan(*query, "--store", store, "-o", file)
    assert (again.status, "exists: name another one, or overwrite it with --force" in again.err) == (1, True)
    assert rmtscan(*query, "--store", store, "-o", file, "--force").status == 0


PRINTING = {
    "models": ("model", "scan_id"),
    "status": ("model", "state"),
    "status --running": ("running", "pid"),
    "show": ("role", "d10"),
    "verify --all": ("file", "state"),
    "rm abc --dry-run": ("table", "result"),
    "compact --dry-run": ("table", "files"),
    "query outliers": ("layer", "query_above"),
    "sql select:1:as:a,:2:as:b": ("b", "a"),
}


@pytest.mark.parametrize("words", PRINTING)
def test_all_verbs_with_a_table_share_their_options(rmtscan: Run, store: Path, words: str) -> None:
    command = [word.replace(":", " ") for word in words.split(" ")]
    names = PRINTING[words]
    for form in ("csv", "table"):
        told = rmtscan(*command, "--columns", ",".join(names), "--store", store, "--format", form)
        assert told.status == 0
        head = told.out.decode().splitlines()[0].replace('"', "").replace(",", " ").split()
        assert head == [*names]
    wide = rmtscan(*command, "--wide", "--all", "--store", store)
    assert wide.status == 0
    few = rmtscan(*command, "--wide", "--rows", "1", "--store", store)
    rows = json.loads(rmtscan(*command, "--store", store, "--format", "json").out)
    assert ("more rows" in few.err) == (len(rows) > 1)
    told = rmtscan(*command, "--columns", names[0] + "x", "--store", store)
    assert (told.status, told.out) == (2, b"")
    assert f"has no column '{names[0]}x'" in told.told


def test_a_wrong_column_is_said_before_any_work(rmtscan: Run, tmp_path: Path) -> None:
    told = rmtscan("scan", tmp_path / "nothing", "--columns", "analyzed", "--store", tmp_path / "store")
    assert (told.status, "did you mean 'analysed'?" in told.told) == (2, True)
    assert not (tmp_path / "store").exists()
