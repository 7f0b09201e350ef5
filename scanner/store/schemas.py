"""The tables' columns and types, and the metadata that every Parquet file of a store carries."""

import json
from collections.abc import Mapping
from typing import Any

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
        | {"svd_method": _TEXT, "svd_residual": _DOUBLE, "seconds": _DOUBLE, "device": _TEXT}
        | _columns("read_seconds decompose_seconds test_seconds", _DOUBLE)
        | {"bytes_read": _BIGINT},
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
    "comparisons": _schema(
        _columns("pair_id base_scan_id tuned_scan_id delta_scan_id base_model tuned_model", _TEXT)
        | {"started_at": _TIME, "finished_at": _TIME, "seconds": _DOUBLE}
        | _columns("matrices identical unmatched failed", _INT)
        | _columns("unmatched_tensors scanner_version method environment", _TEXT),
        required="pair_id base_scan_id tuned_scan_id base_model tuned_model matrices",
    ),
    "pairs": _schema(
        _columns("pair_id base_scan_id tuned_scan_id base_model tuned_model stack", _TEXT)
        | {"layer": _INT, "role": _TEXT}
        | _columns("head expert rows cols", _INT)
        | _columns("module base_tensor tuned_tensor", _TEXT)
        | _columns("relative_change cosine", _DOUBLE)
        | {"identical": _BOOL}
        | _columns("outliers_left_base outliers_left_tuned outliers_right_base outliers_right_tuned intruders", _INT)
        | {"delta_effective_rank": _DOUBLE}
        | _columns("delta_outliers_left delta_outliers_right", _INT)
        | _columns("delta_stable_rank delta_spectral_norm delta_u_p_mean delta_v_p_mean", _DOUBLE)
        | _columns("u_p_mean_base u_p_mean_tuned v_p_mean_base v_p_mean_tuned", _DOUBLE)
        | {"seconds": _DOUBLE},
        required="pair_id base_model tuned_model role rows cols base_tensor tuned_tensor identical",
    ),
    "pair_vectors": _schema(
        _columns("pair_id base_tensor stack", _TEXT)
        | {"layer": _INT, "role": _TEXT}
        | _columns("head expert rows cols", _INT)
        | {"module": _TEXT, "k": _INT}
        | _columns("singular_value_base singular_value_tuned", _DOUBLE)
        | _columns("u_p_base u_p_tuned v_p_base v_p_tuned", _FLOAT)
        | {"u_overlap": _FLOAT, "u_match": _INT, "v_overlap": _FLOAT, "v_match": _INT},
        required="pair_id base_tensor role rows cols k singular_value_base singular_value_tuned",
    ),
    "pair_subspaces": _schema(
        _columns("pair_id base_tensor stack", _TEXT)
        | {"layer": _INT, "role": _TEXT}
        | _columns("head expert rows cols", _INT)
        | {"module": _TEXT, "side": _TEXT, "decile": _INT, "dimensions": _INT}
        | _columns("overlap angle_smallest angle_mean angle_largest", _DOUBLE),
        required="pair_id base_tensor role side decile dimensions",
    ),
    "experiments": _schema(
        _columns("run_id kind model revision source dataset", _TEXT)
        | {"started_at": _TIME, "finished_at": _TIME, "seconds": _DOUBLE, "tokens": _BIGINT}
        | _columns("scanner_version method environment", _TEXT),
        required="run_id kind model",
    ),
    "overlaps": _schema(
        _columns("run_id model revision tensor stack", _TEXT)
        | {"layer": _INT, "role": _TEXT, "module": _TEXT}
        | _columns("expert rows cols k", _INT)
        | {"singular_value": _DOUBLE, "region": _TEXT, "overlap": _FLOAT, "match": _INT, "eigenvalue": _DOUBLE}
        | {"peak": _FLOAT, "centred": _BOOL, "tokens": _BIGINT},
        required="run_id model tensor role k singular_value",
    ),
    "activation_spectra": _schema(
        _columns("run_id model revision tensor stack", _TEXT)
        | {"layer": _INT, "role": _TEXT, "module": _TEXT}
        | _columns("cols index", _INT)
        | {"eigenvalue": _DOUBLE, "centred": _BOOL, "tokens": _BIGINT},
        required="run_id model tensor role index eigenvalue",
    ),
    "ablations": _schema(
        _columns("run_id model revision roles layers set", _TEXT)
        | {"removed": _BIGINT, "fraction": _DOUBLE, "seed": _INT, "metric": _TEXT, "dataset": _TEXT, "tokens": _BIGINT}
        | _columns("baseline value delta stderr seconds", _DOUBLE)
        | {"examples": _BIGINT, "finished_at": _TIME, "batch_tokens": _BIGINT, "beside": _TEXT},
        required="run_id model set metric value",
    ),
    "finetunes": _schema(
        _columns("run_id base_model dataset order", _TEXT)
        | _columns("decile seed", _INT)
        | {"roles": _TEXT, "accuracy": _DOUBLE, "examples": _BIGINT, "epochs": _INT, "seconds": _DOUBLE}
        | {"checkpoint": _TEXT, "finished_at": _TIME, "device": _TEXT, "removed": _BIGINT, "loss": _DOUBLE}
        | {"examples_at_a_time": _INT, "batch_tokens": _BIGINT},
        required="run_id base_model order seed accuracy",
    ),
    "baselines": _schema(
        {"run_id": _TEXT, "window": _INT, "sum": _DOUBLE, "weight": _DOUBLE}, required="run_id window sum weight"
    ),
    "run_skips": _schema(_columns("run_id model tensor reason", _TEXT), required="run_id model tensor reason"),
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


def method_in(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The method among a file's metadata as `file_metadata` wrote them; empty if there is none."""
    method: dict[str, Any] = json.loads((metadata or {}).get(b"rmtscan.method", b"{}"))
    return method


def to_json(value: object) -> str:
    """One line of JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
