"""Rows as CSV and JSON: read back with the standard library, without infinity and NaN."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from scanner.errors import ConfigError, ScannerError
from scanner.export import flat_csv, flat_json
from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan


@pytest.fixture
def odd(tmp_path: Path) -> Store:
    """Values that JSON does not have, and a name that a spreadsheet would run."""
    made = open_store(str(tmp_path / "store"), create=True)
    more = {"stable_rank": math.inf, "mp_ks": math.nan, "effective_rank": -math.inf}
    add_scan(made, "a", [Matrix(tensor="=1+1\n.weight", more=more, u_p=(0.5, None, math.nan, 0.25))])
    return made


@pytest.mark.parametrize("table", ["matrices", "vectors"])
def test_rows_are_those_of_the_store(store: Store, table: str) -> None:
    expected = store.sql(f"from {table}").to_pylist()
    expected = [row for row in expected if row["model"] == "llama"]
    rows = json.loads(flat_json(store, "llama", table=table), parse_constant=pytest.fail)  # type: ignore[arg-type]
    lines = list(csv.DictReader(io.StringIO(flat_csv(store, "llama", table=table))))  # type: ignore[arg-type]
    assert len(rows) == len(lines) == len(expected) > 0
    key = "spectral_norm" if table == "matrices" else "singular_value"
    values = sorted(row[key] for row in expected)
    assert sorted(row[key] for row in rows) == values
    assert sorted(float(line[key]) for line in lines) == values
    assert [*lines[0]] == [*rows[0]] == [*expected[0]]


def test_what_is_not_finite_is_null_in_json_and_empty_in_csv(odd: Store) -> None:
    [row] = json.loads(flat_json(odd, "org/model"), parse_constant=pytest.fail)
    [line] = csv.DictReader(io.StringIO(flat_csv(odd, "org/model")))
    for name in ("stable_rank", "mp_ks", "effective_rank"):
        assert row[name] is None
        assert line[name] == ""
    assert row["tensor"] == "=1+1\n.weight"
    assert line["tensor"] == "'=1+1\\n.weight"
    assert (row["rows"], line["rows"]) == (4, "4")
    vectors = json.loads(flat_json(odd, "org/model", table="vectors"), parse_constant=pytest.fail)
    assert [one["u_p"] for one in vectors] == [0.5, None, None, 0.25]
    assert "nan" not in flat_csv(odd, "org/model", table="vectors").lower()


def test_other_tables_and_models_are_refused(odd: Store) -> None:
    with pytest.raises(ConfigError, match="`table` must be one of matrices, vectors"):
        flat_csv(odd, "org/model", table="scans")  # type: ignore[arg-type]
    with pytest.raises(ScannerError, match="has no rows"):
        flat_json(odd, "org/other")


def test_long_names_are_not_cut(tmp_path: Path) -> None:
    """Two names that differ at their end stay different in a file."""
    made = open_store(str(tmp_path / "long"), create=True)
    names = [f"layers.0.{'x' * 300}.{end}.weight" for end in ("a", "b")]
    add_scan(made, "s", [Matrix(tensor=name) for name in names], model="org/long")
    found = csv.DictReader(io.StringIO(flat_csv(made, "org/long")))
    assert sorted({row["tensor"] for row in found}) == names
