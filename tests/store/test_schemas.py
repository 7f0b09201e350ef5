import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanner.store import SCHEMA_VERSION, SCHEMAS, Store
from scanner.store.tables import conform
from scanner.version import __version__

from .rows import Matrix, add_scan, control, table

# The contract, spelled out a second time: a column that is renamed or retyped by accident fails here.
CONTRACT = {
    "scans": "scan_id model revision source format architecture base_model parameters:int64 dtype started_at:time "
    "finished_at:time seconds:double matrices:int32 vectors:int32 failed:int32 skipped:int32 scanner_version method "
    "environment skipped_tensors identity",
    "matrices": "scan_id model revision tensor stack layer:int32 role role_source head:int32 expert:int32 rows:int32 "
    "cols:int32 module dtype sigma:double sigma_kind sigma_median:double sigma_std:double sigma_init:double "
    "sigma_bulk:double mp_lower:double mp_upper:double outliers_left:int32 outliers_right:int32 rank:int32 "
    "mp_ks:double spectral_norm:double frobenius_norm:double stable_rank:double effective_rank:double "
    "u_p_mean:double v_p_mean:double svd_method svd_residual:double seconds:double device",
    "vectors": "scan_id model revision tensor stack layer:int32 role head:int32 expert:int32 rows:int32 cols:int32 "
    "k:int32 module singular_value:double region u_ks:float u_p:float u_p_local:float v_ks:float v_p:float v_p_local:float "
    "u_ipr:float v_ipr:float u_peak:float v_peak:float",
    "controls": "rows:int32 cols:int32 ensemble seed:int64 k:int32 singular_value:double u_p:float v_p:float "
    "u_p_local:float v_p_local:float",
    "failures": "scan_id model tensor stage error message",
}
LATER = {
    "comparisons": "pair_id base_scan_id tuned_scan_id delta_scan_id base_model tuned_model started_at:time "
    "finished_at:time seconds:double matrices:int32 identical:int32 unmatched:int32 failed:int32 "
    "unmatched_tensors scanner_version method environment",
    "pairs": "pair_id base_scan_id tuned_scan_id base_model tuned_model stack layer:int32 role head:int32 "
    "expert:int32 rows:int32 cols:int32 module base_tensor tuned_tensor relative_change:double "
    "cosine:double identical:bool outliers_left_base:int32 outliers_left_tuned:int32 "
    "outliers_right_base:int32 outliers_right_tuned:int32 intruders:int32 delta_effective_rank:double "
    "delta_outliers_left:int32 delta_outliers_right:int32 delta_stable_rank:double "
    "delta_spectral_norm:double delta_u_p_mean:double delta_v_p_mean:double u_p_mean_base:double "
    "u_p_mean_tuned:double v_p_mean_base:double v_p_mean_tuned:double seconds:double",
    "pair_vectors": "pair_id base_tensor stack layer:int32 role head:int32 expert:int32 rows:int32 cols:int32 module "
    "k:int32 singular_value_base:double singular_value_tuned:double u_p_base:float u_p_tuned:float "
    "v_p_base:float v_p_tuned:float u_overlap:float u_match:int32 v_overlap:float v_match:int32",
    "pair_subspaces": "pair_id base_tensor stack layer:int32 role head:int32 expert:int32 rows:int32 cols:int32 module side "
    "decile:int32 dimensions:int32 overlap:double angle_smallest:double angle_mean:double "
    "angle_largest:double",
    "experiments": "run_id kind model revision source dataset started_at:time finished_at:time seconds:double "
    "tokens:int64 scanner_version method environment",
    "overlaps": "run_id model revision tensor stack layer:int32 role module expert:int32 rows:int32 cols:int32 "
    "k:int32 singular_value:double region overlap:float match:int32 eigenvalue:double peak:float "
    "centred:bool tokens:int64",
    "activation_spectra": "run_id model revision tensor stack layer:int32 role module cols:int32 index:int32 eigenvalue:double "
    "centred:bool tokens:int64",
    "ablations": "run_id model revision roles layers set removed:int64 fraction:double seed:int32 metric dataset "
    "tokens:int64 baseline:double value:double delta:double stderr:double seconds:double examples:int64 "
    "finished_at:time",
    "finetunes": "run_id base_model dataset order decile:int32 seed:int32 roles accuracy:double examples:int64 "
    "epochs:int32 seconds:double checkpoint finished_at:time",
}


def described(schema: pa.Schema) -> str:
    short = {"string": "", "timestamp[us, tz=UTC]": ":time"}
    return " ".join(f"{field.name}{short.get(str(field.type), f':{field.type}')}" for field in schema)


def test_the_tables_have_the_columns_and_types_of_the_contract() -> None:
    assert {name: described(schema) for name, schema in SCHEMAS.items()} == CONTRACT | LATER


def test_committed_files_have_the_contract_s_types(store: Store) -> None:
    add_scan(store, "one", [Matrix()], failed=["broken"])
    store.write_control(control(2, 2, singular_values=[2, 1], u_p=[0.5, 0.5], v_p=[0.5, 0.5]), 2, 2, "gaussian", 0)
    for name, contract in CONTRACT.items():
        [path] = Path(store.url, name).glob("*.parquet")
        assert described(pq.read_schema(path)) == contract


@pytest.mark.parametrize("name", ["scans", "matrices", "vectors", "failures"])
def test_every_file_says_how_it_was_made(store: Store, name: str) -> None:
    add_scan(store, "one", [Matrix()], failed=["broken"])
    metadata = pq.read_metadata(Path(store.url, name, "one.parquet")).metadata
    assert metadata[b"rmtscan.schema_version"] == str(SCHEMA_VERSION).encode()
    assert metadata[b"rmtscan.scanner_version"] == __version__.encode()
    assert json.loads(metadata[b"rmtscan.method"]) == {"sigma": "median"}


def test_files_are_compressed_with_zstd(store: Store) -> None:
    add_scan(store, "one", [Matrix()])
    group = pq.read_metadata(Path(store.url, "vectors", "one.parquet")).row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}


def test_columns_in_another_order_and_wider_types_are_put_right() -> None:
    [row] = table("failures", [{"scan_id": "a", "model": "m", "stage": "open", "error": "E"}]).to_pylist()
    turned = pa.table({name: pa.array([row[name]], pa.large_string()) for name in reversed(row)})
    assert conform("failures", turned).schema.equals(SCHEMAS["failures"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop_columns("k"), "missing ['k']"),
        (lambda rows: rows.append_column("extra", pa.array([1] * rows.num_rows)), "unknown ['extra']"),
        (lambda rows: rows.set_column(11, "k", pa.array([None] * rows.num_rows, pa.int32())), "k"),
        (lambda rows: rows.set_column(11, "k", pa.array([2**40] * rows.num_rows)), "1099511627776"),
    ],
    ids=["missing column", "unknown column", "null where required", "integer out of range"],
)
def test_a_table_that_does_not_fit_is_refused(change: Callable[[pa.Table], pa.Table], said: str) -> None:
    _, vectors = Matrix().tables("a", "m", "r")
    with pytest.raises(ValueError, match=re.escape(said)):
        conform("vectors", change(vectors))


def test_duckdb_reads_the_contract_s_types(store: Store) -> None:
    names = {"string": "VARCHAR", "int32": "INTEGER", "int64": "BIGINT", "float": "FLOAT", "double": "DOUBLE"}
    names["bool"] = "BOOLEAN"
    names["timestamp[us, tz=UTC]"] = "TIMESTAMP WITH TIME ZONE"
    for name, schema in SCHEMAS.items():
        described_rows = store.sql(f'describe "{name}"').to_pylist()
        assert {row["column_name"]: row["column_type"] for row in described_rows} == {
            field.name: names[str(field.type)] for field in schema
        }
