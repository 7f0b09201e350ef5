"""Parts: what was packed is read back completely or not at all, compared with Parquet and the reader of pyarrow."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.store.parts import DamagedPartError, SmallTables, finished_part, read_largest_table, read_small_tables

from .rows import Matrix, table

KEY = "t/None/None"


def read_matrix_row(part: bytes | None) -> SmallTables | None:
    return read_small_tables(part, ("matrices",))


def read_vectors(part: bytes) -> pa.Table:
    return read_largest_table(part, "vectors")


def packed() -> bytes:
    return finished_part("one", KEY, *Matrix().tables("one", "org/model", "r1"))


def through_parquet(rows: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return pq.read_table(io.BytesIO(buffer.getvalue())).replace_schema_metadata(None)


@settings(deadline=None)
@given(
    st.text(st.characters(codec=None), min_size=1),
    st.lists(st.floats(0, 1e9, allow_nan=False), min_size=1, max_size=40).map(lambda s: sorted(s, reverse=True)),
)
def test_what_was_packed_comes_back(key: str, values: list[float]) -> None:
    matrices, vectors = Matrix(singular_values=values).tables("one", "org/model", "r1")
    part = finished_part("one", key, matrices, vectors)
    found = read_matrix_row(part)
    assert found is not None
    assert found.key == key
    assert found.tables["matrices"].equals(through_parquet(matrices))
    assert read_vectors(part).equals(through_parquet(vectors))


def test_vectors_are_sorted_by_rank() -> None:
    matrices, vectors = Matrix().tables("one", "org/model", "r1")
    assert read_vectors(finished_part("one", KEY, matrices, vectors.take([3, 1, 0, 2]))).equals(vectors)


@settings(deadline=None)
@given(st.data())
def test_a_part_that_was_cut_off_is_none(data: st.DataObject) -> None:
    part = packed()
    cut = part[: data.draw(st.integers(0, len(part) - 1))]
    assert read_matrix_row(cut) is None
    with pytest.raises(DamagedPartError):
        read_vectors(cut)


def test_bytes_of_something_else_are_none() -> None:
    for other in (b"", b"PAR1 nonsense PAR1", b"ARROW1\0\0ARROW1", b"\0" * 4096):
        assert read_matrix_row(other) is None
        with pytest.raises(DamagedPartError):
            read_vectors(other)
    assert read_matrix_row(None) is None


def test_rows_that_do_not_belong_together_are_refused() -> None:
    matrices, vectors = Matrix().tables("one", "org/model", "r1")
    with pytest.raises(ValueError, match="other scans"):
        finished_part("two", KEY, matrices, vectors)
    with pytest.raises(ValueError, match="one row"):
        finished_part("one", KEY, table("matrices", matrices.to_pylist() * 2), vectors)
