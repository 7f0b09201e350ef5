"""Columns declared by the analysis, and metrics that extensions register."""

from collections.abc import Iterator

import numpy as np
import pytest

from scanner.rmt.analysis import Analysis, analyze
from scanner.rmt.columns import (
    declared_columns,
    extra_metrics,
    matrix_metric,
    metrics,
    remove_metric,
    vector_metric,
)
from scanner.rmt.decomposition import Decomposition
from scanner.rmt.metric_set import VECTOR_COLUMNS

MATRIX = np.random.default_rng(0).normal(size=(12, 8))


@pytest.fixture
def toy() -> Iterator[None]:
    @matrix_metric("toy_trace", description="sum of the singular values", unit="x")
    def trace(parts: Decomposition, analysis: Analysis) -> float:
        return float(parts.singular_values.sum())

    @vector_metric("toy_share", description="share of the singular value in their sum")
    def share(parts: Decomposition, analysis: Analysis) -> np.ndarray:
        return analysis.singular_values / analysis.singular_values.sum()

    yield
    remove_metric("toy_trace")
    remove_metric("toy_share")


def test_every_value_of_an_analysis_is_a_column() -> None:
    fields = {*Analysis.__dataclass_fields__} - {"rows", "cols", "metrics", "extra"}
    assert {*declared_columns(Analysis, "matrix")} | {*declared_columns(Analysis, "vector")} == fields
    found = analyze(MATRIX)
    chosen = {column.name for column in VECTOR_COLUMNS}
    assert {*found.vector_columns()} == {"k", *chosen, *(c.name for c in declared_columns(Analysis, "vector").values())}
    assert found.matrix_columns()["rank"] == 8
    assert found.vector_columns()["singular_value"] is found.singular_values
    assert not found.extra


@pytest.mark.usefixtures("toy")
def test_registered_metrics_are_computed_with_every_analysis() -> None:
    found = analyze(MATRIX)
    s = np.linalg.svd(MATRIX, compute_uv=False)
    assert found.matrix_columns()["toy_trace"] == pytest.approx(s.sum())
    np.testing.assert_allclose(found.vector_columns()["toy_share"], s / s.sum())  # type: ignore[call-overload]
    assert "toy_share" not in found.matrix_columns()
    assert extra_metrics() == ("toy_share", "toy_trace")
    assert [metric.column.unit for metric in metrics("matrix")] == ["x"]


def test_without_metrics_nothing_is_added() -> None:
    assert extra_metrics() == ()


@pytest.mark.usefixtures("toy")
def test_a_vector_metric_has_a_value_for_every_triplet() -> None:
    vector_metric("toy_short", description="too short")(lambda parts, analysis: [1.0])
    try:
        with pytest.raises(ValueError, match="'toy_short' returned 1 values for 8 triplets"):
            analyze(MATRIX)
    finally:
        remove_metric("toy_short")


@pytest.mark.usefixtures("toy")
def test_a_name_belongs_to_one_metric() -> None:
    with pytest.raises(ValueError, match="already registered"):
        matrix_metric("toy_trace", description="another")(lambda parts, analysis: 0.0)


@pytest.mark.parametrize("name", ["", "two words", "Upper", "1st", "a-b", "größe"])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="invalid column name"):
        matrix_metric(name, description="something")


def test_a_metric_needs_a_description() -> None:
    with pytest.raises(ValueError, match="description"):
        matrix_metric("nameless", description="")
