"""Staging and commit of comparisons, and files of experiments."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanner.errors import StoreError
from scanner.store import SCHEMAS, Store, open_store
from scanner.store.staging import key_hash

METHOD = {"sigma": "median"}
PLACE = {"pair_id": "pair", "base_tensor": "t", "role": "query", "rows": 2, "cols": 2, "layer": 0}


def piece(tensor: str, layer: int) -> dict[str, pa.Table]:
    place = PLACE | {"base_tensor": tensor, "layer": layer}
    pair = place | {"base_model": "b", "tuned_model": "t", "tuned_tensor": tensor, "identical": False}
    vectors = [place | {"k": k, "singular_value_base": 2.0 - k, "singular_value_tuned": 3.0 - k} for k in (1, 0)]
    subspace = place | {"side": "u", "decile": 10, "dimensions": 1, "overlap": 1.0}
    rows = {"pairs": [pair], "pair_vectors": vectors, "pair_subspaces": [subspace]}
    return {table: pa.Table.from_pylist(found, schema=SCHEMAS[table]) for table, found in rows.items()}


def row() -> dict[str, object]:
    models = {"base_model": "b", "tuned_model": "t", "base_scan_id": "1", "tuned_scan_id": "2"}
    return {"pair_id": "pair", "matrices": 2} | models


def test_a_comparison_is_seen_once_it_is_committed_and_sorted_then(store: Store) -> None:
    batch = store.comparison("pair", method=METHOD)
    batch.stage("late", piece("z", 1))
    batch.stage("early", piece("a", 0))
    assert store.sql("SELECT * FROM pairs").num_rows == 0
    assert not batch.committed
    batch.commit(["late", "early"], lambda tables: row())
    assert batch.committed
    assert store.sql("SELECT base_tensor FROM all_pairs")["base_tensor"].to_pylist() == ["a", "z"]
    found = store.sql("SELECT layer, k FROM all_pair_vectors").to_pylist()
    assert [(one["layer"], one["k"]) for one in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert store.unfinished() == []


def test_pieces_survive_the_driver_that_staged_them(store: Store) -> None:
    store.comparison("pair", method=METHOD).stage("one", piece("a", 0))
    again = open_store(store.url).comparison("pair", method=METHOD)
    assert again.staged(["one", "two"]) == {"one"}
    assert store.unfinished() == [], "a comparison is not a scan"
    again.discard()
    assert again.staged(["one"]) == set()


def stage_as_before(store: Store, key: str, rows: dict[str, pa.Table]) -> None:
    """Write a piece as versions without parts did: one Parquet file per table."""
    for table, content in rows.items():
        path = Path(store.url, "staging-comparisons", "pair", table, f"{key_hash(key)}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, path)


def test_pieces_that_an_earlier_version_staged_are_used(store: Store) -> None:
    stage_as_before(store, "late", piece("z", 1))
    half = piece("y", 2)
    stage_as_before(store, "half", {"pair_vectors": half["pair_vectors"]})
    batch = store.comparison("pair", method=METHOD)
    assert batch.staged(["late", "early", "half"]) == {"late"}
    batch.stage("early", piece("a", 0))
    batch.stage("half", half)
    batch.commit(["late", "early", "half"], lambda tables: row() | {"matrices": tables["pairs"].num_rows})
    found = store.sql("SELECT base_tensor, k FROM all_pair_vectors").to_pylist()
    assert [(one["base_tensor"], one["k"]) for one in found] == [(t, k) for t in "azy" for k in (0, 1)]
    assert store.sql("SELECT base_tensor FROM all_pair_subspaces")["base_tensor"].to_pylist() == ["a", "z", "y"]
    assert store.sql("SELECT matrices FROM comparisons").to_pylist() == [{"matrices": 3}]
    assert not Path(store.url, "staging-comparisons", "pair").exists()


def test_a_comparison_is_replaced_by_force(store: Store) -> None:
    batch = store.comparison("pair", method=METHOD)
    batch.stage("one", piece("a", 0))
    batch.commit(["one"], lambda tables: row())
    again = store.comparison("pair", method=METHOD)
    again.discard()
    assert again.staged(["one"]) == set()
    again.stage("one", piece("b", 0))
    assert store.sql("SELECT base_tensor FROM all_pairs")["base_tensor"].to_pylist() == ["a"]
    again.commit(["one"], lambda tables: row())
    assert store.sql("SELECT base_tensor FROM all_pairs")["base_tensor"].to_pylist() == ["b"]


def test_two_writers_of_one_comparison_end_with_one_complete_result(store: Store) -> None:
    first, second = (store.comparison("pair", method=METHOD) for _ in range(2))
    first.stage("one", piece("a", 0))
    second.stage("one", piece("a", 0))
    first.commit(["one"], lambda tables: row())
    second.commit(["one"], lambda tables: row() | {"matrices": 5})
    assert store.sql("SELECT matrices FROM comparisons").to_pylist() == [{"matrices": 2}]


def test_a_damaged_piece_is_not_finished(store: Store) -> None:
    store.comparison("pair", method=METHOD).stage("one", piece("a", 0))
    [path] = Path(store.url, "staging-comparisons", "pair", "first", "finished").iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert store.comparison("pair", method=METHOD).staged(["one"]) == set()


def test_rows_of_another_comparison_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="other comparisons"):
        store.comparison("other", method=METHOD).stage("one", piece("a", 0))


def test_a_comparison_whose_pieces_are_gone_is_not_committed(store: Store) -> None:
    batch = store.comparison("pair", method=METHOD)
    batch.stage("one", piece("a", 0))
    with pytest.raises(StoreError, match="1 staged parts"):
        batch.commit(["one", "two"], lambda tables: row())
    assert not batch.committed


def test_a_piece_needs_rows_of_every_table(store: Store) -> None:
    batch = store.comparison("pair", method=METHOD)
    with pytest.raises(ValueError, match="pair_subspaces"):
        batch.stage("one", {"pairs": piece("a", 0)["pairs"]})


def test_a_finished_point_is_there_at_once_and_for_all_who_open_the_store(store: Store) -> None:
    point = {"run_id": "r", "model": "m", "set": "decile:1", "metric": "perplexity", "value": 12.5}
    rows = pa.Table.from_pylist([point], schema=SCHEMAS["ablations"])
    assert not store.has_rows("ablations", "r-1")
    store.write_rows("ablations", "r-1", rows, method=METHOD)
    assert open_store(store.url).has_rows("ablations", "r-1")
    assert store.sql('SELECT "set", value FROM ablations').to_pylist() == [{"set": "decile:1", "value": 12.5}]


@pytest.mark.parametrize(("table", "name"), [("scans", "x"), ("ablations", "../x")])
def test_an_experiment_writes_its_own_tables_only(store: Store, table: str, name: str) -> None:
    with pytest.raises(ValueError, match="no experiment"):
        store.write_rows(table, name, SCHEMAS[table].empty_table(), method=METHOD)
