"""The tables' columns and types, and the metadata that every Parquet file of a store carries."""

import json
from collections.abc import Mapping

import pyarrow as pa

from scanner.version import __version__

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning; columns that are only added leave it alone."""

_TEXT, _BOOL, _INT, _BIGINT, _FLOAT, _DOUBLE = (
    pa.string(),
    pa.bool_(),
    pa.int32(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
)
_TIME = pa.timestamp("us", tz="UTC")


def _schema(columns: Mapping[str, pa.DataType], required: str) -> pa.Schema:
    """A schema whose columns may be null except the `required` ones (names separated by blanks)."""
    names = required.split()
    return pa.schema([pa.field(name, kind, nullable=name not in names) for name, kind in columns.items()])


def _columns(names: str, kind: pa.DataType) -> dict[str, pa.DataType]:
    return dict.fromkeys(names.split(), kind)


SCHEMAS: dict[str, pa.Schema] = {
    "scans": _schema(
        _columns("scan_id model revision source format architecture base_model", _TEXT)
        | {"parameters": _BIGINT, "dtype": _TEXT, "started_at": _TIME, "finished_at": _TIME, "seconds": _DOUBLE}
        | _columns("matrices vectors failed skipped", _INT)
        | _columns("scanner_version method environment skipped_tensors identity", _TEXT),
        required="scan_id model matrices vectors failed",
    ),
    "matrices": _schema(
        _columns("scan_id model revision tensor stack", _TEXT)
        | {"layer": _INT, "role": _TEXT, "role_source": _TEXT}
        | _columns("head expert rows cols", _INT)
        | {"module": _TEXT, "dtype": _TEXT, "sigma": _DOUBLE, "sigma_kind": _TEXT}
        | _columns("sigma_median sigma_std sigma_init sigma_bulk mp_lower mp_upper", _DOUBLE)
        | _columns("outliers_left outliers_right rank", _INT)
        | _columns("mp_ks spectral_norm frobenius_norm stable_rank effective_rank u_p_mean v_p_mean", _DOUBLE)
        | {"svd_method": _TEXT, "svd_residual": _DOUBLE, "seconds": _DOUBLE, "device": _TEXT},
        required="scan_id model tensor role rows cols",
    ),
    "vectors": _schema(
        _columns("scan_id model revision tensor stack", _TEXT)
        | {"layer": _INT, "role": _TEXT}
        | _columns("head expert rows cols k", _INT)
        | {"module": _TEXT}
        | {"singular_value": _DOUBLE, "region": _TEXT}
        | _columns("u_ks u_p u_p_local v_ks v_p v_p_local u_ipr v_ipr u_peak v_peak", _FLOAT),
        required="scan_id model tensor role rows cols k singular_value",
    ),
    "failures": _schema(
        _columns("scan_id model tensor stage error message", _TEXT),
        required="scan_id model stage error",
    ),
    "controls": _schema(
        {"rows": _INT, "cols": _INT, "ensemble": _TEXT, "seed": _BIGINT, "k": _INT, "singular_value": _DOUBLE}
        | _columns("u_p v_p u_p_local v_p_local", _FLOAT),
        required="rows cols ensemble seed k singular_value",
    ),
}
"""Name of a table to its schema: the columns of the design, in its order, with the types that every file has."""


def conform(name: str, table: pa.Table) -> pa.Table:
    """`table` with the columns of `SCHEMAS[name]` in their order and types.

    Raises:
        ValueError: a column is missing or unknown, a required one holds nulls, or a value does not fit its type.
    """
    schema = SCHEMAS[name]
    required = (column for column, field in zip(table.columns, schema, strict=False) if not field.nullable)
    if table.schema.equals(schema) and not any(column.null_count for column in required):
        return table.replace_schema_metadata(None)  # nothing to cast: a cast of every column costs more than the rest
    missing = [column for column in schema.names if column not in table.column_names]
    unknown = [column for column in table.column_names if column not in schema.names]
    if missing or unknown:
        raise ValueError(f"table {name!r}: columns missing {missing}, unknown {unknown}")
    return table.select(schema.names).replace_schema_metadata(None).cast(schema)


def file_metadata(method: Mapping[str, object], **more: str) -> dict[str, str]:
    """Parquet key-value metadata: schema version, scanner version, the method as JSON, and `more` under `rmtscan.`."""
    values = {"schema_version": str(SCHEMA_VERSION), "scanner_version": __version__, "method": to_json(method)} | more
    return {f"rmtscan.{key}": value for key, value in values.items()}


def to_json(value: object) -> str:
    """One line of JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
