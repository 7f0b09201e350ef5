"""A scan of a part of the sample model gives the rows that it gave before: bit for bit on the same kind of processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from . import sample_rows

ABSOLUTE = 1e-6
"""Largest difference of a statistic, inverse participation ratio or peak."""
RELATIVE = 1e-9
"""Largest relative difference of singular values and of numbers that follow from them."""
STEEP = 1e-3
"""A p-value changes up to about sqrt(n) times as much as its statistic."""


@pytest.fixture(scope="module")
def tables(minilm: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    return sample_rows.scanned(minilm, tmp_path_factory.mktemp("sample"))


def columns(table: pa.Table, frozen: pa.Table) -> list[str]:
    """The frozen columns; all of them are still there, with their types."""
    assert {*frozen.column_names} <= {*table.column_names}
    for name in frozen.column_names:
        assert table.schema.field(name).type == frozen.schema.field(name).type, name
    return list(frozen.column_names)


@pytest.mark.parametrize("name", sample_rows.TABLES)
def test_numbers_are_the_same_up_to_rounding(name: str, tables: dict[str, pa.Table]) -> None:
    table, frozen = tables[name], sample_rows.read(name)
    assert table.num_rows == frozen.num_rows
    for column in columns(table, frozen):
        found, expected = table[column].combine_chunks(), frozen[column].combine_chunks()
        if not pa.types.is_floating(expected.type):
            assert found.equals(expected), column
            continue
        assert found.is_null().equals(expected.is_null()), column
        one, other = (side.drop_null().to_numpy().astype(np.float64) for side in (found, expected))
        if column == "svd_residual":
            assert np.all(one < 1e-12), "rounding errors themselves are not compared"
        elif column in {"u_p", "v_p", "u_p_local", "v_p_local", "u_p_mean", "v_p_mean"}:
            np.testing.assert_allclose(one, other, rtol=0, atol=STEEP, err_msg=column)
        elif column in {"u_ks", "v_ks"}:
            np.testing.assert_allclose(one, other, rtol=0, atol=ABSOLUTE, err_msg=column)
        elif expected.type == pa.float32():
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=ABSOLUTE, err_msg=column)
        else:
            np.testing.assert_allclose(one, other, rtol=RELATIVE, atol=0, err_msg=column)


def test_rows_of_vectors_name_their_matrix(tables: dict[str, pa.Table]) -> None:
    vectors, matrices = tables["vectors"], tables["matrices"]
    place = [*sample_rows.OF_THE_MATRIX, "layer", "role"]
    of_vectors = vectors.select(place).to_pylist()
    distinct = [row for at, row in enumerate(of_vectors) if at == 0 or row != of_vectors[at - 1]]
    assert distinct == matrices.select(place).to_pylist()


@pytest.mark.parametrize("name", sample_rows.TABLES)
def test_numbers_are_the_same_bit_for_bit(name: str, tables: dict[str, pa.Table]) -> None:
    made_on = json.loads(sample_rows.PROCESSOR.read_text("utf-8"))
    if made_on != sample_rows.processor():
        pytest.skip(f"made on another processor or with other libraries: {made_on}")
    table, frozen = tables[name], sample_rows.read(name)
    for column in columns(table, frozen):
        found, expected = table[column].combine_chunks(), frozen[column].combine_chunks()
        assert found.equals(expected), f"{column}: equal up to rounding is not enough on the same processor"
