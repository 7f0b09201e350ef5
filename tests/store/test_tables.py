import json
import re
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanner.rmt.columns import matrix_metric, remove_metric, vector_metric
from scanner.store import SCHEMA_VERSION, SCHEMAS, Store, open_store
from scanner.store.compaction import compact
from scanner.store.documentation import documentation
from scanner.store.merging import merge
from scanner.store.tables import TABLES, complete, conform, pack, rows, unpack
from scanner.version import __version__
from tests.fixtures.store import unpack as unpack_fixture

from .rows import Matrix, add_scan, control, scan_values, table

# The contract, spelled out a second time: a column that is renamed or retyped by accident fails here.
CONTRACT = {
    "scans": "scan_id model revision source format architecture base_model parameters:int64 dtype started_at:time "
    "finished_at:time seconds:double matrices:int32 vectors:int32 failed:int32 skipped:int32 scanner_version method "
    "environment skipped_tensors identity files initializer_range:double",
    "matrices": "scan_id model revision tensor stack layer:int32 role role_source head:int32 expert:int32 rows:int32 cols:int32 "
    "module dtype sigma:double sigma_kind sigma_median:double sigma_std:double sigma_init:double sigma_bulk:double "
    "mp_lower:double mp_upper:double outliers_left:int32 outliers_right:int32 rank:int32 mp_ks:double "
    "spectral_norm:double frobenius_norm:double stable_rank:double effective_rank:double u_p_mean:double "
    "v_p_mean:double svd_method svd_residual:double scale_kind scale_lower:double scale_upper:double "
    "scale_threshold:double outliers_left_scale:int32 outliers_right_scale:int32 u_p_scale_mean:double "
    "v_p_scale_mean:double scale_row_inequality:double scale_col_inequality:double scale_lower_robust:double "
    "scale_upper_robust:double scale_lower_total:double scale_upper_total:double scale_failure heads_side "
    "heads_p_mean:double heads_p_scale_mean:double u_p_omnibus:double v_p_omnibus:double u_p_scale_omnibus:double "
    "v_p_scale_omnibus:double bulk_failed:bool bulk_lower:double bulk_upper:double "
    "alpha:double alpha_error:double alpha_xmin:double alpha_tail:int32 alpha_ks:double alpha_p:double alpha_failure "
    "alpha_hill:double tw_p:double tw_outliers:int32 bema_upper:double bema_outliers:int32 spacing_ratio:double "
    "gd_rank:int32 alpha_farms:double ww_alpha:double ww_xmin:double ww_D:double ww_sigma:double "
    "ww_num_pl_spikes:int32 ww_alpha_weighted:double ww_log_alpha_norm:double ww_log_norm:double "
    "ww_log_spectral_norm:double ww_stable_rank:double ww_matrix_rank:int32 ww_entropy:double ww_num_spikes:int32 "
    "ww_mp_softrank:double ww_rand_distance:double metrics_failure "
    "kv_head:int32 between "
    "seconds:double device read_seconds:double decompose_seconds:double test_seconds:double bytes_read:int64",
    "vectors": "scan_id model revision tensor stack layer:int32 role head:int32 expert:int32 rows:int32 cols:int32 k:int32 "
    "module singular_value:double region u_ks:float u_p:float u_p_local:float v_ks:float v_p:float v_p_local:float "
    "u_ipr:float v_ipr:float u_peak:float v_peak:float region_scale scale_density:double u_p_scale:float "
    "v_p_scale:float u_p_within:float v_p_within:float heads_effective:float heads_p:float heads_top:int32 "
    "heads_p_scale:float u_q:float v_q:float u_effect:float v_effect:float u_q_scale:float v_q_scale:float "
    "u_effect_scale:float v_effect_scale:float strength:double",
    "controls": "rows:int32 cols:int32 ensemble seed:int64 k:int32 singular_value:double u_p:float v_p:float "
    "u_p_local:float v_p_local:float",
    "matrix_controls": "scan_id model tensor layer:int32 role head:int32 expert:int32 rows:int32 cols:int32 ensemble seed:int64 "
    "k:int32 singular_value:double region region_scale u_p:float v_p:float u_p_scale:float v_p_scale:float",
    "failures": "scan_id model tensor stage error message transient:bool",
}
REQUIRED = {
    "scans": "scan_id model matrices vectors failed",
    "matrices": "scan_id model tensor role rows cols",
    "vectors": "scan_id model tensor role rows cols k singular_value",
    "failures": "scan_id model stage error",
    "controls": "rows cols ensemble seed k singular_value",
    "matrix_controls": "scan_id model tensor role rows cols ensemble seed k singular_value",
    "comparisons": "pair_id base_scan_id tuned_scan_id base_model tuned_model matrices",
    "pairs": "pair_id base_model tuned_model role rows cols base_tensor tuned_tensor identical",
    "pair_vectors": "pair_id base_tensor role rows cols k singular_value_base singular_value_tuned",
    "pair_subspaces": "pair_id base_tensor role side decile dimensions",
    "experiments": "run_id kind model",
    "overlaps": "run_id model tensor role k singular_value",
    "activation_spectra": "run_id model tensor role index eigenvalue",
    "overlap_maps": "run_id model tensor role k j",
    "ablations": "run_id model set metric value",
    "finetunes": "run_id base_model order seed accuracy",
    "baselines": "run_id window sum weight",
    "run_skips": "run_id model tensor reason",
    "nights": "night_id watch_id state",
    "releases": "night_id watch_id repository commit state attempts",
}
LATER = {
    "comparisons": "pair_id base_scan_id tuned_scan_id delta_scan_id base_model tuned_model started_at:time "
    "finished_at:time seconds:double matrices:int32 identical:int32 unmatched:int32 failed:int32 "
    "unmatched_tensors scanner_version method environment files",
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
    "tokens:int64 scanner_version method environment batch_tokens:int64 files",
    "overlaps": "run_id model revision tensor stack layer:int32 role module expert:int32 rows:int32 cols:int32 "
    "k:int32 singular_value:double region overlap:float match:int32 eigenvalue:double peak:float "
    "centred:bool tokens:int64 importance:double signs_p:double signs_median:float signs_bound:double overlap_even:float "
    "overlap_odd:float",
    "overlap_maps": "run_id model revision tensor stack layer:int32 role module cols:int32 k:int32 j:int32 overlap:float "
    "centred:bool tokens:int64",
    "activation_spectra": "run_id model revision tensor stack layer:int32 role module cols:int32 index:int32 eigenvalue:double "
    "centred:bool tokens:int64",
    "ablations": "run_id model revision roles layers set removed:int64 fraction:double seed:int32 metric dataset tokens:int64 "
    "baseline:double value:double delta:double stderr:double seconds:double examples:int64 finished_at:time "
    "batch_tokens:int64 beside energy:double window_sums:list<item: double>",
    "finetunes": "run_id base_model dataset order decile:int32 seed:int32 roles accuracy:double examples:int64 "
    "epochs:int32 seconds:double checkpoint finished_at:time "
    "device removed:int64 loss:double examples_at_a_time:int32 batch_tokens:int64",
    "baselines": "run_id window:int32 sum:double weight:double",
    "run_skips": "run_id model tensor reason",
    "nights": "night_id watch_id state started_at:time finished_at:time watermark:time listed:int32 new:int32 planned:int32 "
    "scanned:int32 failed:int32 skipped:int32 waiting:int32 upgraded:int32 bytes:int64 expected_seconds:double seconds:double "
    "problems failed_upgrades config scanner_version",
    "releases": "night_id watch_id repository commit branch state reason attempts:int32 first_seen_at:time updated_at:time "
    "last_modified:time parameters:int64 bytes:int64 expected_seconds:double task library license gated downloads:int64 "
    "base_model base_commit scan_id pair_id matrices:int32 failed_tensors:int32",
}


def described(schema: pa.Schema) -> str:
    short = {"string": "", "timestamp[us, tz=UTC]": ":time"}
    return " ".join(f"{field.name}{short.get(str(field.type), f':{field.type}')}" for field in schema)


def test_the_tables_have_the_columns_and_types_of_the_contract() -> None:
    assert {name: described(schema) for name, schema in SCHEMAS.items()} == CONTRACT | LATER


def test_the_required_columns_are_those_of_the_contract() -> None:
    for name, schema in SCHEMAS.items():
        assert {field.name for field in schema if not field.nullable} == {*REQUIRED[name].split()}, name


def test_every_column_says_what_it_is() -> None:
    for name, table_ in TABLES.items():
        assert table_.row
        assert table_.description
        assert {*table_.order} | {*table_.paths} <= {*SCHEMAS[name].names}
        for column in table_.columns:
            assert column.description, f"{name}.{column.name}"
            assert not column.description.endswith(".")


def test_files_carry_descriptions_and_units(store: Store) -> None:
    add_scan(store, "one", [Matrix()])
    store.write_control(control(2, 2, singular_values=[2, 1], u_p=[0.5, 0.5], v_p=[0.5, 0.5]), 2, 2, "gaussian", 0)
    for name in ("matrices", "vectors", "controls", "scans"):
        [path] = Path(store.url, name).glob("*.parquet")
        for field, column in zip(pq.read_schema(path), TABLES[name].columns, strict=True):
            assert field.metadata[b"description"].decode() == column.description
            assert field.metadata.get(b"unit", b"").decode() == column.unit


def test_rows_repeats_single_values_and_turns_nan_into_null() -> None:
    built = rows(
        "vectors", {"model": "m", "k": range(2), "u_p": np.array([0.5, np.nan]), "layer": None, "u_ks": np.nan}, 2
    )
    assert built.schema.equals(SCHEMAS["vectors"])
    assert built["model"].to_pylist() == ["m", "m"]
    assert built["u_p"].to_pylist() == [0.5, None]
    assert built["u_ks"].to_pylist() == built["layer"].to_pylist() == built["head"].to_pylist() == [None, None]
    again = rows("vectors", {"model": "m", "u_p": built["u_p"]}, 2)
    assert again["u_p"].to_pylist() == [0.5, None]


def test_rows_of_unknown_columns_or_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="no columns"):
        rows("vectors", {"extra": 1}, 1)
    with pytest.raises(ValueError, match="'k' has 3 values for 2 rows"):
        rows("vectors", {"k": [0, 1, 2]}, 2)


def test_packed_tables_come_back() -> None:
    built = rows("baselines", {"run_id": "r", "window": [0, 1], "sum": [1.0, 2.0], "weight": 3.0}, 2)
    assert unpack(pack(built)).equals(built)


def test_rows_of_an_earlier_version_are_completed() -> None:
    _, vectors = Matrix().tables("a", "m", "r")
    earlier = vectors.drop_columns("u_peak").append_column("gone", pa.array([1] * vectors.num_rows))
    assert complete("vectors", earlier).equals(vectors)


def test_a_store_of_before_reads_new_columns_and_tables_as_null_and_empty(store: Store) -> None:
    add_scan(store, "one", [Matrix()])
    path = Path(store.url, "matrices", "one.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["read_seconds", "bytes_read"]), path)
    point = rows("ablations", {"run_id": "r", "model": "m", "set": "none", "metric": "kl", "value": 0.0}, 1)
    path = Path(store.url, "ablations", "r-none.parquet")
    path.parent.mkdir()
    pq.write_table(point.drop_columns(["batch_tokens", "beside"]), path)
    assert store.sql("select read_seconds, bytes_read from matrices").to_pylist() == [
        {"read_seconds": None, "bytes_read": None}
    ]
    assert store.sql("select batch_tokens, beside from ablations").to_pylist() == [
        {"batch_tokens": None, "beside": None}
    ]
    assert store.file_rows("ablations", "r-none", ["value", "beside"]) == [{"value": 0.0, "beside": None}]
    assert store.sql("from baselines").num_rows == store.sql("from run_skips").num_rows == 0


def test_baselines_and_skips_of_runs_are_kept(store: Store) -> None:
    baseline = rows("baselines", {"run_id": "r", "window": range(2), "sum": [1.0, 2.0], "weight": 3.0}, 2)
    store.write_rows("baselines", "r", baseline, method={})
    skip = rows("run_skips", {"run_id": "r", "model": "m", "tensor": "t", "reason": "no layer of that name"}, 1)
    store.write_rows("run_skips", "r-0", skip, method={})
    assert store.sql("select sum(sum) as s from baselines").to_pylist() == [{"s": 3.0}]
    assert store.sql("select reason from run_skips").to_pylist() == [{"reason": "no layer of that name"}]


def test_a_registered_metric_is_a_column_of_its_table(store: Store) -> None:
    add_scan(store, "before", [Matrix()])
    matrix_metric("half_norm", description="half of the largest singular value", unit="x")(lambda parts, analysis: 1.0)
    vector_metric("toy_share", description="share of the sum")(lambda parts, analysis: analysis.singular_values)
    try:
        assert SCHEMAS["matrices"].names[-1] == "half_norm"
        assert str(SCHEMAS["vectors"].field("toy_share").type) == "float"
        assert "half_norm" not in SCHEMAS["controls"].names
        matrices, vectors = Matrix(more={"half_norm": 2.0}).tables("after", "org/model", "r2")
        writer = store.writer("after", method={}, model="org/model")
        writer.stage("t", matrices, vectors)
        writer.commit(scan_values(revision="r2"))
        found = store.sql("select scan_id, half_norm from matrices order by scan_id").to_pylist()
        assert [row["half_norm"] for row in found] == [2.0, None]
        assert "`half_norm`" in documentation(TABLES.values())
    finally:
        remove_metric("half_norm")
        remove_metric("toy_share")
    assert "half_norm" not in SCHEMAS["matrices"].names


def test_a_metric_with_the_name_of_a_column_is_refused() -> None:
    matrix_metric("device", description="not the device")(lambda parts, analysis: 1.0)
    try:
        with pytest.raises(ValueError, match="rename it"):
            _ = TABLES["matrices"].columns
    finally:
        remove_metric("device")


def test_committed_files_have_the_contract_s_types(store: Store) -> None:
    add_scan(store, "one", [Matrix()], failed=["broken"])
    store.write_control(control(2, 2, singular_values=[2, 1], u_p=[0.5, 0.5], v_p=[0.5, 0.5]), 2, 2, "gaussian", 0)
    place = {"scan_id": "one", "model": "m", "tensor": "t", "role": "query", "rows": 2, "cols": 2}
    drawn = place | {"ensemble": "sign", "seed": 0, "k": [0, 1], "singular_value": [2.0, 1.0]}
    store.write_matrix_control(rows("matrix_controls", drawn, 2), "one", "t", "sign", 0)
    assert store.has_matrix_control("one", "t", "sign", 0)
    assert not store.has_matrix_control("one", "other", "sign", 0)
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
    names |= {"bool": "BOOLEAN", "list<item: double>": "DOUBLE[]"}
    names["timestamp[us, tz=UTC]"] = "TIMESTAMP WITH TIME ZONE"
    for name, schema in SCHEMAS.items():
        described_rows = store.sql(f'describe "{name}"').to_pylist()
        assert {row["column_name"]: row["column_type"] for row in described_rows} == {
            field.name: names[str(field.type)] for field in schema
        }


def parquet_files(url: str) -> list[Path]:
    """Return the Parquet files of a store; a part of an unfinished scan has the suffix, too, and is none."""
    return [path for path in Path(url).rglob("*.parquet") if path.read_bytes()[:4] == b"PAR1"]


def described_fields(url: str) -> set[tuple[str, str]]:
    """Return every field of the files of tables (also of groups) that has a description: table and column."""
    found = set()
    for path in parquet_files(url):
        table = next((part for part in path.relative_to(url).parts if part in TABLES), None)
        for field in pq.read_schema(path) if table else ():
            if field.metadata and field.metadata.get(b"description"):
                found.add((str(table), field.name))
    return found


def test_compaction_and_merging_keep_descriptions_and_files_without_them_open(tmp_path: Path) -> None:
    """Descriptions are for readers: no comparison of schemas may take them for a difference."""
    old = Path(unpack_fixture(tmp_path)) / "store"
    bare = tmp_path / "bare"
    into = open_store(str(tmp_path / "into"), create=True)
    # Files of a version that wrote no descriptions; without checksums, as those versions wrote them.
    shutil.copytree(old, bare)
    for path in parquet_files(str(bare)):
        rows_ = pq.read_table(path)
        kept = {k: v for k, v in (rows_.schema.metadata or {}).items() if k != b"rmtscan.sha256"}
        schema = pa.schema([field.remove_metadata() for field in rows_.schema], metadata=kept)
        pq.write_table(pa.Table.from_arrays(rows_.columns, schema=schema), path)
    assert described_fields(str(bare)) == set()
    expected = open_store(str(old)).sql("select count(*) as n from vectors")
    assert open_store(str(bare)).sql("select count(*) as n from vectors") == expected
    add_scan(into, "new", [Matrix()], model="org/new")
    merge(open_store(str(old)), into)
    names = {(table, column.name) for table in ("matrices", "vectors", "scans") for column in TABLES[table].columns}
    assert names <= described_fields(into.url)
    compact(into, grace=timedelta(0))
    assert names - {("scans", name) for name in SCHEMAS["scans"].names} <= described_fields(into.url)
    assert not [found for found in into.verify() if found.state == "damaged"]
    [row] = into.sql("select count(*) as n from vectors").to_pylist()
    assert row["n"] == expected["n"][0].as_py() + 4
