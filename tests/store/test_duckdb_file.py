"""A store as a DuckDB file, read with plain DuckDB: every view has the rows of the store."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from scanner.errors import StoreError
from scanner.store import Store, open_store
from scanner.store.duckdb_file import write_duckdb
from scanner.store.tables import TABLES, views
from tests.cli.conftest import Run, rmtscan  # noqa: F401 (a fixture)
from tests.store.rows import Matrix, Pair, add_comparison, add_scan
from tests.store.test_experiment_queries import add_overlaps, add_point, add_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"), create=True)
    add_scan(made, "one", [Matrix(), Matrix(tensor="block.1.query", layer=1)], model="org/one", failed=["broken"])
    add_scan(made, "again", [Matrix(singular_values=[9.0, 3.0, 2.0, 1.0])], model="org/one", hours=1)
    add_scan(made, "two", [Matrix()], model="org/it's", hours=2)
    add_comparison(made, "pair", [Pair(tensor="a", layer=0)])
    add_run(made, "run", "activations")
    add_overlaps(made, "run", [0.9, 0.7])
    add_point(made, "d1", run_id="run", set="decile:1", delta=1.0)
    return made


def plain_rows(table: pa.Table) -> list[str]:
    """Return rows as sorted texts; a time zone has two names, UTC and Etc/UTC."""
    rows = [
        [value.isoformat() if isinstance(value, datetime) else value for value in row.values()]
        for row in table.to_pylist()
    ]
    return sorted(map(repr, rows))


def test_every_view_has_the_rows_of_the_store(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    written = {one.name: one.rows for one in write_duckdb(store, path)}
    assert [*written] == list(views())
    with duckdb.connect(str(path), read_only=True) as plain:
        for name in views():
            theirs = plain.execute(f'select * from "{name}"').to_arrow_table()
            ours = store.sql(f'select * from "{name}"')
            assert theirs.column_names == ours.column_names
            assert written[name] == theirs.num_rows == ours.num_rows, name
            assert plain_rows(theirs) == plain_rows(ours), name
        assert plain.execute("select count(*) from matrices").fetchone() == (3,)
        assert plain.execute("select count(*) from all_matrices").fetchone() == (4,)


def test_columns_have_their_descriptions(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    write_duckdb(store, path)
    with duckdb.connect(str(path), read_only=True) as plain:
        told = dict(
            plain.execute("select column_name, comment from duckdb_columns() where table_name = 'matrices'").fetchall()
        )
    for column in TABLES["matrices"].columns:
        assert told[column.name].startswith(column.description)


def test_the_file_has_the_format_that_earlier_clients_read(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    write_duckdb(store, path)
    with duckdb.connect() as plain:
        plain.execute(f"attach '{path}' as found (read_only)")
        [(tags,)] = plain.execute("select tags from duckdb_databases() where database_name = 'found'").fetchall()
    assert tags["storage_version"].startswith("v1.0.0"), tags
    assert [one.name for one in tmp_path.iterdir() if one.name != "store"] == ["results.duckdb"]


def test_a_file_that_cannot_be_written_is_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere/a\.duckdb' cannot be written: ") as caught:
        write_duckdb(store, tmp_path / "nowhere" / "a.duckdb")
    assert "\n" not in str(caught.value)


def test_the_command_overwrites_nothing(rmtscan: Run, store: Store, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "a.duckdb"
    told = rmtscan("export", "duckdb", "--store", store.url, "-o", path)
    assert (told.status, told.out) == (0, b"")
    assert "scans 3, matrices 3, vectors 12, failures 1" in told.told
    assert "exists" in rmtscan("export", "duckdb", "--store", store.url, "-o", path).told
    assert rmtscan("export", "duckdb", "--store", store.url, "-o", path, "--force").status == 0
