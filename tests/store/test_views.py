from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanner.store import Store, open_store

from .rows import NOON, Matrix, add_scan, scan_values


def held(store: Store, view: str = "matrices") -> set[tuple[object, ...]]:
    """The scan that the view takes each matrix from."""
    rows = store.sql(f"select distinct scan_id, tensor, head, expert from {view}").to_pylist()
    return {tuple(value for value in row.values() if value is not None) for row in rows}


def plan(store: Store, text: str, **params: object) -> str:
    """The plan that DuckDB executed."""
    return str(store._database().connection.execute(f"explain analyze {text}", params or None).fetchall()[0][1])


A, B, C = Matrix(tensor="a"), Matrix(tensor="b", layer=1), Matrix(tensor="c", layer=2)


def test_a_later_scan_of_some_matrices_replaces_those_only(store: Store) -> None:
    add_scan(store, "old", [A, B, C])
    add_scan(store, "new", [B], hours=1)
    expected = {("old", "a"), ("new", "b"), ("old", "c")}
    assert held(store, "matrices") == expected
    assert held(store, "vectors") == expected
    assert store.sql("from vectors").num_rows == 12
    assert held(store, "all_vectors") == expected | {("old", "b")}
    assert store.sql("from all_vectors").num_rows == 16


def test_the_newest_is_the_one_that_finished_last_whatever_its_id(store: Store) -> None:
    add_scan(store, "z", [A], hours=0)
    add_scan(store, "m", [A], hours=2)
    add_scan(store, "a", [A], hours=1)
    assert held(store) == {("m", "a")}


def test_scan_id_decides_between_scans_that_finished_together(store: Store) -> None:
    add_scan(store, "one", [A])
    add_scan(store, "two", [A])
    assert held(store) == {("two", "a")}


def test_a_scan_without_vectors_supersedes_only_scans_without_vectors(store: Store) -> None:
    add_scan(store, "values", [A, B], values_only=True)
    assert held(store) == {("values", "a"), ("values", "b")}
    add_scan(store, "later-values", [A], hours=1, values_only=True)
    assert held(store) == {("later-values", "a"), ("values", "b")}
    add_scan(store, "whole", [A], hours=2)
    add_scan(store, "newest-values", [A, C], hours=3, values_only=True)
    add_scan(store, "with-vectors", [C], hours=4, values_only=False)
    expected = {("whole", "a"), ("values", "b"), ("with-vectors", "c")}
    assert held(store, "matrices") == held(store, "vectors") == expected
    add_scan(store, "flag-as-number", [A], hours=5, values_only=1)
    assert held(store, "matrices") == expected


def test_heads_and_experts_are_matrices_of_their_own(store: Store) -> None:
    add_scan(store, "old", [A, Matrix(tensor="a", head=0), Matrix(tensor="a", head=1), Matrix(tensor="a", expert=0)])
    add_scan(store, "new", [Matrix(tensor="a", head=1)], hours=1)
    assert held(store) == {("old", "a"), ("old", "a", 0), ("new", "a", 1)}
    assert store.sql("from matrices").num_rows == 4
    assert store.sql("from vectors").num_rows == 16


def test_other_models_and_revisions_replace_nothing(store: Store) -> None:
    add_scan(store, "one", [A], model="m1")
    add_scan(store, "two", [A], model="m2", hours=1)
    add_scan(store, "three", [A], model="m1", revision="r2", hours=2)
    assert held(store) == {("one", "a"), ("two", "a"), ("three", "a")}


def test_a_matrix_that_failed_in_a_later_scan_keeps_its_earlier_result(store: Store) -> None:
    add_scan(store, "old", [A])
    add_scan(store, "new", [], hours=1, failed=["a"])
    assert held(store) == {("old", "a")}
    assert store.sql("select scan_id, tensor from failures").to_pylist() == [{"scan_id": "new", "tensor": "a"}]


scans_of_some = st.lists(
    st.tuples(
        st.sampled_from(["m1", "m2"]),
        st.sampled_from(["r1", "r2"]),
        st.sets(st.tuples(st.sampled_from("abc"), st.sampled_from([None, 0, 1])), max_size=4),
        st.integers(0, 2),
    ),
    max_size=5,
)


@given(scans=scans_of_some)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_newest_result_of_every_matrix_is_shown_and_no_other(
    scans: list[tuple[str, str, set[tuple[str, int | None]], int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("store")), create=True)
    newest: dict[tuple[object, ...], tuple[int, str]] = {}
    for number, (model, revision, matrices, hours) in enumerate(scans):
        scan_id = f"s{number}"
        parts = [Matrix(tensor=tensor, head=head, singular_values=(1.0,)) for tensor, head in matrices]
        add_scan(store, scan_id, parts, model=model, revision=revision, hours=hours)
        for tensor, head in matrices:
            key = (model, revision, tensor, head)
            newest[key] = max(newest.get(key, (-1, "")), (hours, scan_id))
    expected = sorted(((*key, scan_id) for key, (_, scan_id) in newest.items()), key=str)
    for view in ("matrices", "vectors"):
        rows = store.sql(f"select model, revision, tensor, head, scan_id from {view}").to_pylist()
        assert sorted((tuple(row.values()) for row in rows), key=str) == expected
    store.close()


def test_superseded_scans_are_not_read(store: Store) -> None:
    add_scan(store, "old", [A, B])
    add_scan(store, "new", [A, B], hours=1)
    assert "Total Files Read: 1" in plan(store, "select sum(u_p) from vectors")
    assert "Total Files Read: 2" in plan(store, "select sum(u_p) from all_vectors")


def test_columns_that_older_files_do_not_have_are_null_in_their_rows(store: Store) -> None:
    add_scan(store, "old", [A], model="m1")
    add_scan(store, "new", [A], model="m2")
    path = Path(store.url, "matrices", "new.parquet")
    extended = pq.read_table(path).append_column("later_alpha", pa.array([2.5]))
    pq.write_table(extended, path)
    rows = open_store(store.url).sql("select scan_id, later_alpha from matrices order by scan_id desc").to_pylist()
    assert rows == [{"scan_id": "old", "later_alpha": None}, {"scan_id": "new", "later_alpha": 2.5}]


def test_columns_that_a_file_lacks_are_null(store: Store) -> None:
    add_scan(store, "one", [A])
    path = Path(store.url, "vectors", "one.parquet")
    pq.write_table(pq.read_table(path).drop_columns("u_peak"), path)
    assert open_store(store.url).sql("select distinct u_peak from vectors").to_pylist() == [{"u_peak": None}]


def test_a_question_about_one_model_reads_that_model_s_row_groups_only(store: Store) -> None:
    for number in range(4):
        add_scan(store, f"s{number}", [A], model=f"m{number}")
    text = "select sum(u_p) from vectors semi join chosen_scans($model, null) using (scan_id)"
    assert "Row Groups Scanned: 1 / 4" in plan(store, text, model="m2")


def chosen(store: Store, model: str | None, revision: str | None) -> set[str]:
    rows = store.sql("from chosen_scans($model, $revision)", {"model": model, "revision": revision}).to_pylist()
    return {row["scan_id"] for row in rows}


def test_of_several_revisions_the_newest_is_chosen_unless_another_is_asked_for(store: Store) -> None:
    add_scan(store, "a1", [A], model="a", revision="1234aaaa", hours=0)
    add_scan(store, "a2", [A], model="a", revision="5678aaaa", hours=2)
    add_scan(store, "a2b", [B], model="a", revision="5678aaaa", hours=1)
    add_scan(store, "a3", [A], model="a", revision="1234bbbb", hours=1)
    add_scan(store, "b1", [A], model="b", revision="1234aaaa", hours=0)
    assert chosen(store, None, None) == {"a2", "a2b", "b1"}
    assert chosen(store, "a", None) == {"a2", "a2b"}
    assert chosen(store, "a", "1234aaaa") == {"a1"}
    assert chosen(store, "a", "1234") == {"a3"}
    assert chosen(store, None, "1234") == {"a3", "b1"}
    assert chosen(store, "a", "none") == set()
    assert chosen(store, "A", None) == set()


def test_a_revision_given_in_full_wins_over_newer_ones_that_begin_the_same(store: Store) -> None:
    add_scan(store, "short", [A], revision="v1", hours=0)
    add_scan(store, "long", [A], revision="v1.1", hours=1)
    assert chosen(store, None, "v1") == {"short"}


def test_times_are_utc(store: Store) -> None:
    add_scan(store, "one", [A])
    [row] = store.sql("select finished_at from scans").to_pylist()
    assert row["finished_at"] == NOON
    assert str(store.sql("select finished_at from scans").schema.field(0).type) == "timestamp[us, tz=UTC]"


# ---- scans with different metrics


def add_metrics(
    store: Store, scan_id: str, hours: float, names: list[str], *, values_only: bool = False, **columns: object
) -> None:
    """Commit a scan of A and B with metrics; B has ten times the values of A."""
    writer = store.writer(scan_id, method={"metric_set": names, "values_only": values_only}, model="org/model")
    for matrix, factor in ((A, 1.0), (B, 10.0)):
        row, vectors = matrix.tables(scan_id, "org/model", "r1")
        for name, value in columns.items():
            if name == "strength":
                at = vectors.schema.get_field_index(name)
                vectors = vectors.set_column(at, vectors.schema.field(at), pa.array([value * factor] * len(vectors)))  # type: ignore[operator]
            else:
                at = row.schema.get_field_index(name)
                scaled = value * factor if isinstance(value, float) else value
                row = row.set_column(at, row.schema.field(at), pa.array([scaled], row.schema.field(at).type))
        writer.stage(matrix.key, row, vectors)
    writer.commit(scan_values(revision="r1", hours=hours))


def test_each_column_of_a_metric_comes_from_the_newest_scan_that_computed_it(store: Store) -> None:
    add_metrics(store, "whole", 0, ["alpha", "strength"], alpha=2.0, alpha_failure="rejected", strength=3.0)
    add_metrics(store, "more", 1, ["alpha", "gd_rank", "spacing_ratio"], values_only=True, alpha=4.0, spacing_ratio=0.5)
    add_metrics(store, "fewer", 2, ["spacing_ratio"], spacing_ratio=0.25, metrics_failure="gd_rank: none")
    found = store.sql(
        "select scan_id, tensor, alpha, alpha_failure, spacing_ratio, metrics_failure from matrices order by 2"
    )
    # `fewer` is the newest with vectors; it has no alpha, and the newer one of the others has no failure.
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("fewer", "a", 4.0, None, 0.25, "gd_rank: none"),
        ("fewer", "b", 40.0, None, 2.5, "gd_rank: none"),
    ]
    vectors = store.sql(
        "select scan_id, tensor, min(strength), max(strength), count(*) from vectors group by all order by 2"
    )
    assert [tuple(row.values()) for row in vectors.to_pylist()] == [
        ("fewer", "a", 3.0, 3.0, 4),
        ("fewer", "b", 30.0, 30.0, 4),
    ]
    assert store.sql("from all_matrices").num_rows == 6
    assert store.query("metrics_by_role", model="org/model").num_rows > 0


def test_other_models_are_not_changed_by_scans_with_different_metrics(store: Store) -> None:
    add_metrics(store, "one", 0, ["alpha"], alpha=2.0)
    add_metrics(store, "two", 1, [], values_only=True)
    add_scan(store, "other", [A], model="org/other")
    found = store.sql("select model, scan_id, alpha from matrices where tensor = 'a' order by 1").to_pylist()
    assert [tuple(row.values()) for row in found] == [("org/model", "one", 2.0), ("org/other", "other", None)]


def test_metrics_of_another_sigma_are_not_mixed_in(store: Store) -> None:
    add_metrics(store, "median", 0, ["spacing_ratio", "strength"], spacing_ratio=0.5, strength=3.0)
    add_metrics(store, "std", 1, [], sigma_kind="std")
    found = store.sql("select distinct scan_id, spacing_ratio from matrices").to_pylist()
    assert found == [{"scan_id": "std", "spacing_ratio": None}]
    assert store.sql("select count(strength) as n from vectors").to_pylist() == [{"n": 0}]


def test_reasons_are_those_of_the_newest_scan_with_metrics(store: Store) -> None:
    add_metrics(store, "old", 0, ["alpha", "tw"], metrics_failure="alpha, tw: no bulk")
    add_metrics(store, "new", 1, ["tw"], tw_p=0.5)
    add_metrics(store, "none", 2, [])
    found = store.sql(
        "select distinct scan_id, tensor, metrics_failure, alpha, tw_p from matrices order by tensor"
    ).to_pylist()
    assert [tuple(row.values()) for row in found] == [("none", "a", None, None, 0.5), ("none", "b", None, None, 5.0)]
