"""Rows of a scan of a part of the sample model, and the processor that computed them."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scanner import Method, PoolOptions, Selection, open_store, scan

FOLDER = Path(__file__).parent
TABLES = ("matrices", "vectors")
FILES = {table: FOLDER / f"sample_{table}.parquet" for table in TABLES}
PROCESSOR = FOLDER / "sample_processor.json"

# The file is older than the scale null and the metrics of the spectrum.
METHOD = Method(
    scale="none", metrics=("none",), selection=Selection(only=("query", "mlp_up", "mlp_down"), layers=(0, 5))
)
ORDER = [("layer", "ascending"), ("role", "ascending"), ("tensor", "ascending")]
OF_THE_RUN = ("seconds", "device")
"""Columns that tell of the run and not of the matrix."""
OF_THE_MATRIX = ("scan_id", "model", "revision", "stack", "head", "expert", "module", "tensor", "rows", "cols")
"""Columns of `vectors` that `matrices` holds as well: left out of the file, and compared with `matrices`."""


def processor() -> dict[str, str]:
    """This machine's processor and the numerical libraries: where they are equal, results are equal bit for bit."""
    told: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    features = " ".join(sorted((told.get("flags") or told.get("Features") or "").split()))
    return {
        "machine": platform.machine(),
        "model": told.get("model name", ""),
        "family": " ".join(told.get(name, "") for name in ("cpu family", "model", "stepping")),
        "features": hashlib.sha256(features.encode()).hexdigest()[:16],
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def scanned(checkpoint: Path, folder: Path) -> dict[str, pa.Table]:
    """The rows of both tables, in a fixed order, computed at one thread."""
    report = scan(str(checkpoint), store=folder / "store", method=METHOD, ensembles=(), pool=PoolOptions(workers=1))
    assert report.failed == 0
    store = open_store(report.store)
    matrices = store.sql("SELECT * FROM matrices").sort_by(ORDER)
    vectors = store.sql("SELECT * FROM vectors").sort_by([*ORDER, ("k", "ascending")])
    return {"matrices": matrices.drop_columns([*OF_THE_RUN]), "vectors": vectors}


def write(tables: dict[str, pa.Table]) -> None:
    """Write the files."""
    for table, rows in tables.items():
        kept = rows.drop_columns([*OF_THE_MATRIX]) if table == "vectors" else rows
        bare = kept.replace_schema_metadata(None)
        pq.write_table(bare, FILES[table], compression="zstd", compression_level=19, use_byte_stream_split=floats(bare))
    PROCESSOR.write_text(json.dumps(processor(), indent=1) + "\n", "utf-8")


def floats(table: pa.Table) -> list[str]:
    """Columns of floating-point numbers."""
    return [field.name for field in table.schema if pa.types.is_floating(field.type)]


def read(table: str) -> pa.Table:
    """The frozen rows of a table."""
    return pq.read_table(FILES[table])
