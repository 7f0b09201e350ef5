"""Answers as files, read back by other programs: pyarrow, csv, json, openpyxl, DuckDB."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanner.errors import ConfigError, ScannerError
from scanner.export import answers
from scanner.store import Store, open_store
from tests.cli.conftest import Run, rmtscan  # noqa: F401 (a fixture)
from tests.store.rows import Matrix, add_scan

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "plain", "http://example.org", "12", None]


@pytest.fixture
def table() -> pa.Table:
    count = len(FORMULAS)
    moments = [datetime(2026, 11, 1, 12, 30, tzinfo=UTC)] * count
    return pa.table(
        {
            "text": FORMULAS,
            "=name": list(range(count)),
            "number": [1.5, float("nan"), float("inf"), -0.25, None, 1e-300, 3.0, 0.0, 1e300, 2.0],
            "large": [2**53 + 1] * count,
            "flag": [True, False] * (count // 2),
            "moment": pa.array(moments, pa.timestamp("us", tz="UTC")),
            "decimal": [Decimal("12.50")] * count,
            "list": [[1.0, 2.0]] * count,
        },
        schema=None,
    )


def workbook(content: bytes) -> Any:
    return openpyxl.load_workbook(io.BytesIO(content))


def test_a_workbook_has_the_rows_and_runs_nothing(table: pa.Table) -> None:
    sheet = workbook(answers.answer_file(table, ".xlsx"))["rows"]
    rows = list(sheet.iter_rows())
    assert [cell.value for cell in rows[0]][:3] == ["text", "'=name", "number"]
    assert all(cell.data_type != "f" for row in rows for cell in row), "no cell is a formula"
    texts = [row[0].value for row in rows[1:]]
    assert texts[:4] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)"]
    assert texts[4:6] == ["'\\tx", "'\\rx"]
    assert texts[6:] == ["plain", "http://example.org", "12", None]
    assert rows[8][0].hyperlink is None
    assert [row[2].value for row in rows[1:]] == [1.5, None, None, -0.25, None, 1e-300, 3, 0, 1e300, 2]
    assert rows[1][3].value == str(2**53 + 1), "a number that a cell cannot hold is a text"
    assert (rows[1][4].value, rows[2][4].value) == (True, False)
    assert rows[1][5].value == datetime(2026, 11, 1, 12, 30)
    assert (rows[1][6].value, rows[1][7].value) == (12.5, "[1.0, 2.0]")


def test_a_workbook_says_what_its_columns_are(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    add_scan(store, "one", [Matrix()], model="org/one")
    book = workbook(answers.answer_file(store.query("layer_trend"), ".xlsx"))
    about = dict(book["columns"].iter_rows(min_row=2, values_only=True))
    assert about["v_p"] == "right singular vectors: mean p-value"
    assert [*about] == store.query("layer_trend").column_names


def test_long_texts_are_cut_with_a_mark_and_too_many_rows_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    content = answers.answer_file(pa.table({"a": ["x" * 40_000]}), ".xlsx")
    value = workbook(content)["rows"]["A2"].value
    assert (len(value), value[-1]) == (answers.MOST_CHARACTERS, "…")
    monkeypatch.setattr(answers, "MOST_ROWS", 2)
    with pytest.raises(ScannerError, match=r"3 rows and 1 columns do not fit into a sheet of Excel"):
        answers.answer_file(pa.table({"a": [1, 2, 3]}), ".xlsx")


def test_without_its_library_a_workbook_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xlsxwriter", None)
    with pytest.raises(ScannerError, match=r"pip install 'rmtscan\[xlsx\]'"):
        answers.answer_file(pa.table({"a": [1]}), ".xlsx")


def test_csv_and_json_and_parquet_hold_the_rows(table: pa.Table) -> None:
    rows = list(csv.DictReader(io.StringIO(answers.answer_file(table, ".csv").decode())))
    assert [row["text"] for row in rows][:4] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)"]
    assert [row["'=name"] for row in rows] == [str(i) for i in range(len(FORMULAS))]
    assert [row["number"] for row in rows][:5] == ["1.5", "nan", "inf", "-0.25", ""], "NaN is not NULL"
    found = json.loads(answers.answer_file(table, ".json"), parse_constant=lambda text: pytest.fail(text))
    assert [row["text"] for row in found] == FORMULAS
    assert (found[1]["number"], found[0]["large"], found[0]["decimal"]) == (None, 2**53 + 1, 12.5)
    back = pq.read_table(io.BytesIO(answers.answer_file(table, ".parquet")))
    assert back.column("number").to_pylist()[3:] == table.column("number").to_pylist()[3:]
    assert back.column("text").to_pylist() == FORMULAS


def test_names_that_occur_twice_are_told_apart() -> None:
    twice = pa.Table.from_arrays(
        [pa.array([1]), pa.array([2]), pa.array([3]), pa.array([4])], names=["a", "a", "a_1", "b"]
    )
    [row] = json.loads(answers.answer_file(twice, ".json"))
    assert row == {"a": 1, "a_2": 2, "a_1": 3, "b": 4}
    [row] = json.loads(answers.answer_file(twice.select([0, 1, 3]), ".json"))
    assert row == {"a": 1, "a_1": 2, "b": 4}, "the names of version 0.1"


@pytest.mark.parametrize("suffix", answers.WRITERS)
def test_an_answer_without_rows_is_a_file(suffix: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    content = answers.answer_file(store.query("scans"), suffix)
    names = store.query("scans").column_names
    if suffix == ".parquet":
        assert pq.read_table(io.BytesIO(content)).column_names == names
    elif suffix == ".xlsx":
        assert [cell.value for cell in workbook(content)["rows"][1]] == names
    else:
        assert json.loads(content) == [] if suffix == ".json" else content.decode().count("\n") == 1


# ---- on the command line


@pytest.fixture
def answered(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "store"), create=True)
    add_scan(store, "one", [Matrix(), Matrix(tensor="block.1.query", layer=1)], model="=org/one")
    return store


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.json", "a.XLSX"])
def test_query_and_sql_write_files(rmtscan: Run, answered: Store, tmp_path: Path, name: str) -> None:  # noqa: F811
    path = tmp_path / name
    told = rmtscan("query", "layer_trend", "--store", answered.url, "-o", path)
    assert (told.status, told.out) == (0, b"")
    assert told.err.startswith(f"{path}: 2 rows, ")
    assert path.stat().st_size > 0
    told = rmtscan("sql", "select model from scans", "--store", answered.url, "-o", path)
    assert (told.status, told.out) == (1, b"")
    assert "exists: name another one" in told.told
    assert "--force" in told.told or "force" in told.told
    assert rmtscan("sql", "select model from scans", "--store", answered.url, "-o", path, "--force").status == 0
    if name.endswith(".csv"):
        assert path.read_text("utf-8") == '"model"\n"\'=org/one"\n'


def test_a_format_that_is_none_is_refused_before_the_store_is_read(rmtscan: Run, tmp_path: Path) -> None:  # noqa: F811
    told = rmtscan("query", "scans", "--store", tmp_path / "nothing", "-o", tmp_path / "a.txt")
    assert told.status == 1
    assert "the suffix selects the format: .parquet .csv .json .xlsx" in told.told
    with pytest.raises(ConfigError, match="the suffix selects the format"):
        answers.suffix_of(Path("a"))
