"""Columns of the result tables that are declared where their values are computed, and a registry of additional metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from scanner.rmt.analysis import Analysis
    from scanner.rmt.decomposition import Decomposition

ColumnType = Literal["text", "bool", "int32", "int64", "float32", "float64", "timestamp", "float64[]"]
Scope = Literal["matrix", "vector"]
"""Whether a value belongs to a whole matrix, or to each of its singular triplets."""

MatrixFunction = Callable[["Decomposition", "Analysis"], float]
VectorFunction = Callable[["Decomposition", "Analysis"], "ArrayLike"]
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

_SCOPE, _COLUMN = "scanner.scope", "scanner.column"


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: ColumnType
    unit: str = ""
    """Physical unit, such as `s` or `bytes`; empty for counts, text and dimensionless numbers."""
    description: str = ""
    """One phrase or sentence that says what the value is."""
    required: bool = False
    """Whether the column never holds nulls."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A registered metric: a column, and the function that computes it."""

    column: Column
    scope: Scope
    function: Callable[[Decomposition, Analysis], Any]


_METRICS: dict[str, Metric] = {}


def of_matrix(type_: ColumnType, description: str, *, unit: str = "", name: str = "") -> dict[str, object]:
    """Metadata of a dataclass field whose value is a column of `matrices`; `name` defaults to that of the field."""
    return {_SCOPE: "matrix", _COLUMN: Column(name, type_, unit, description)}


def of_vector(
    type_: ColumnType, description: str, *, unit: str = "", name: str = "", required: bool = False
) -> dict[str, object]:
    """Metadata of a dataclass field whose array, one value per singular triplet, is a column of `vectors`."""
    return {_SCOPE: "vector", _COLUMN: Column(name, type_, unit, description, required)}


@cache
def declared_columns(owner: type[Any], scope: Scope) -> dict[str, Column]:
    """Columns that the fields of a dataclass declare.

    Args:
        owner: the dataclass.
        scope: which columns are wanted.

    Returns:
        Name of the field to its column, in the order of the fields.
    """
    found = {}
    for field in fields(owner):
        if field.metadata.get(_SCOPE) == scope:
            column = field.metadata[_COLUMN]
            name = column.name or field.name
            found[field.name] = Column(name, column.type, column.unit, column.description, column.required)
    return found


def matrix_metric(
    name: str, type_: ColumnType = "float64", *, description: str, unit: str = ""
) -> Callable[[AnyFunction], AnyFunction]:
    """Register a function whose result becomes a column of table `matrices`.

    The function receives the decomposition and the analysis of a matrix and returns one number; NaN is stored as null.

    Args:
        name: name of the column: lower-case letters, digits and underscores.
        type_: type of the column.
        description: one phrase or sentence for the documentation.
        unit: unit of the value.

    Raises:
        ValueError: the name is invalid, or another metric or column has it.
    """
    return _registered(Column(name, type_, unit, description), "matrix")


def vector_metric(
    name: str, type_: ColumnType = "float32", *, description: str, unit: str = ""
) -> Callable[[AnyFunction], AnyFunction]:
    """Register a function whose result becomes a column of table `vectors`.

    The function receives the decomposition and the analysis of a matrix and returns one value per singular triplet, the largest
    singular value first; NaN is stored as null. Arguments and errors are those of `matrix_metric`.
    """
    return _registered(Column(name, type_, unit, description), "vector")


def metrics(scope: Scope | None = None) -> tuple[Metric, ...]:
    """Registered metrics sorted by name, of one scope or (None) of both."""
    return tuple(_METRICS[name] for name in sorted(_METRICS) if scope in (None, _METRICS[name].scope))


def extra_metrics() -> tuple[str, ...]:
    """Names of the registered metrics, sorted. If there are any, they are part of the method of a scan."""
    return tuple(metric.column.name for metric in metrics())


def remove_metric(name: str) -> None:
    """Remove a metric from the registry, if it is there."""
    _METRICS.pop(name, None)


def extra_values(parts: Decomposition, analysis: Analysis) -> dict[str, Any]:
    """Compute every registered metric of one matrix, by name of the column.

    Raises:
        ValueError: a vector metric returned an array of the wrong length.
    """
    values = {}
    for metric in metrics():
        value = metric.function(parts, analysis)
        if metric.scope == "vector" and len(value) != len(analysis.singular_values):
            raise ValueError(
                f"metric {metric.column.name!r} returned {len(value)} values for {len(analysis.singular_values)} triplets"
            )
        values[metric.column.name] = value
    return values


def _registered(column: Column, scope: Scope) -> Callable[[AnyFunction], AnyFunction]:
    if not (column.name.isascii() and column.name.isidentifier() and column.name == column.name.lower()):
        raise ValueError(f"invalid column name {column.name!r}: use lower-case letters, digits and underscores")
    if not column.description:
        raise ValueError(f"metric {column.name!r} needs a description")

    def register(function: AnyFunction) -> AnyFunction:
        known = _METRICS.get(column.name)
        if known is not None and _origin(known.function) != _origin(function):
            raise ValueError(f"a metric {column.name!r} is already registered by {'.'.join(_origin(known.function))}")
        _METRICS[column.name] = Metric(column=column, scope=scope, function=function)
        return function

    return register


def _origin(function: Callable[..., Any]) -> tuple[str, str]:
    """Module and name of a function: the same function may be registered again when its module is reloaded."""
    return function.__module__, function.__qualname__
