"""A store of synthetic scans and comparisons in the shape of a real fleet, on which the queries are timed.

Files, sort order and row groups are those of a real store, but are written directly, without staged parts. Numbers are
random: p-values are uniform, and smaller at both ends of the spectrum, as in trained matrices.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scanner import open_store
from scanner.store import SCHEMAS, Store
from scanner.store.files import StoreFiles
from scanner.store.row_groups import ROW_GROUP
from scanner.store.tables import file_metadata

Row = dict[str, object]
Columns = dict[str, NDArray[Any]]

START = datetime(2026, 11, 1, tzinfo=UTC)
SERIES = "bench/series"
"""The model that has several scanned revisions."""
METHOD = {"sigma_kind": "median", "synthetic": True}
_VECTOR_FLOATS = "u_ks u_p u_p_local v_ks v_p v_p_local u_ipr v_ipr u_peak v_peak".split()
_FAILURES = (("read", "OSError", "file ends early: 4096 bytes are missing"), ("analyse", "ValueError", "NaN in row 17"))


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Size of the store."""

    scans: int
    revisions: int
    """Scans of `SERIES`; every other scan has a model of its own."""
    comparisons: int
    layers: int
    width: int
    inner: int

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns by role, as in a Llama without grouped queries."""
        square, up = (self.width, self.width), (self.inner, self.width)
        return dict.fromkeys(("query", "key", "value", "attn_out"), square) | {
            "mlp_up": up,
            "mlp_gate": up,
            "mlp_down": (self.width, self.inner),
        }

    @property
    def matrices(self) -> int:
        """Number of matrices in one scan."""
        return self.layers * len(self.shapes)

    @property
    def models(self) -> list[tuple[str, str]]:
        """Model and revision of every scan, in the order of completion."""
        single = [(f"bench/model-{i:03}", f"{i:040x}") for i in range(self.scans - self.revisions)]
        return single + [(SERIES, f"step{1000 * (i + 1)}") for i in range(self.revisions)]


WHOLE = Fleet(scans=50, revisions=6, comparisons=6, layers=32, width=4096, inner=11008)
SMALL = Fleet(scans=4, revisions=2, comparisons=2, layers=2, width=64, inner=160)


def build(folder: Path, fleet: Fleet) -> Store:
    """Write the store into a new folder and open it."""
    store = open_store(str(folder), create=True)
    files = StoreFiles(str(folder))
    random = np.random.default_rng(0)
    for number in range(fleet.scans):
        _write_scan(files, fleet, number, random)
    for (rows, cols), ensemble in itertools.product(sorted({*fleet.shapes.values()}), ("gaussian", "kaiming_uniform")):
        store.write_control(_control(rows, cols, ensemble, random), rows, cols, ensemble, 0)
    for number in range(fleet.comparisons):
        _write_comparison(files, fleet, number, random)
    return store


def _write_scan(files: StoreFiles, fleet: Fleet, number: int, random: np.random.Generator) -> None:
    model, revision = fleet.models[number]
    scan_id = f"{number:032x}"
    scan: Row = {"scan_id": scan_id, "model": model, "revision": revision}
    vectors, matrices = [], []
    for layer, role in itertools.product(range(fleet.layers), sorted(fleet.shapes)):
        rows, cols = fleet.shapes[role]
        place = scan | {"tensor": f"model.layers.{layer}.{role}.weight", "layer": layer, "role": role}
        count = min(rows, cols)
        sigma = (0.8 + 0.4 * random.random()) / np.sqrt(max(rows, cols))
        shared = place | {"rows": rows, "cols": cols}
        values: Columns = {"k": np.arange(count), "singular_value": _spectrum(rows, cols, sigma, random)}
        values |= {name: _p_values(count, random) for name in _VECTOR_FLOATS}
        vectors.append(_table("vectors", count, shared | {"region": "bulk"}, values))
        left, right = (int(n) for n in random.integers(0, count // 10, 2))
        matrices.append(
            shared
            | {"role_source": "llama", "dtype": "bfloat16", "sigma": sigma, "sigma_kind": "median"}
            | {"mp_lower": sigma * (np.sqrt(max(rows, cols)) - np.sqrt(count))}
            | {"mp_upper": sigma * (np.sqrt(max(rows, cols)) + np.sqrt(count))}
            | {"outliers_left": left, "outliers_right": right, "rank": count, "mp_ks": 0.1 * random.random()}
            | {"spectral_norm": float(values["singular_value"][0])}
            | {"stable_rank": count * (0.1 + 0.1 * random.random())}
            | {"effective_rank": count * (0.8 + 0.1 * random.random())}
            | {"u_p_mean": float(np.mean(values["u_p"])), "v_p_mean": float(np.mean(values["v_p"]))}
            | {"svd_method": "gram", "seconds": 1e-9 * rows * cols * count * (1 + random.random())}
            | {"device": "cpu" if number % 2 else "cuda:0"}
        )
    failures: list[Row] = [
        {
            "scan_id": scan_id,
            "model": model,
            "tensor": f"broken.{stage}.weight",
            "stage": stage,
            "error": error,
            "message": message,
        }
        for stage, error, message in _FAILURES[: number % 3]
    ]
    finished = START + timedelta(hours=number)
    row: Row = scan | {"architecture": "LlamaForCausalLM", "format": "safetensors", "dtype": "bfloat16"}
    row |= {"parameters": fleet.layers * sum(rows * cols for rows, cols in fleet.shapes.values())}
    row |= {"started_at": finished - timedelta(minutes=50), "finished_at": finished, "seconds": 3000.0}
    row |= {"matrices": len(matrices), "vectors": sum(map(len, vectors)), "failed": len(failures), "skipped": 3}
    _write(files, "vectors", scan_id, pa.concat_tables(vectors))
    _write(files, "matrices", scan_id, matrices)
    _write(files, "failures", scan_id, failures)
    _write(files, "scans", scan_id, [row])


def _write_comparison(files: StoreFiles, fleet: Fleet, number: int, random: np.random.Generator) -> None:
    """Write the comparison of one fine-tuned model with the first model of the fleet."""
    (base, _), (tuned, _) = fleet.models[0], fleet.models[number + 1]
    pair_id = f"{number:032x}"
    names: Row = {"pair_id": pair_id, "base_model": base, "tuned_model": tuned}
    names |= {"base_scan_id": f"{0:032x}", "tuned_scan_id": f"{number + 1:032x}"}
    pairs: list[Row] = []
    subspaces: list[Row] = []
    vectors = []
    for layer, role in itertools.product(range(fleet.layers), sorted(fleet.shapes)):
        rows, cols = fleet.shapes[role]
        count = min(rows, cols)
        tensor = f"model.layers.{layer}.{role}.weight"
        place: Row = {"pair_id": pair_id, "layer": layer, "role": role, "rows": rows, "cols": cols}
        place |= {"base_tensor": tensor}
        values: Columns = {"k": np.arange(count)}
        for when in ("base", "tuned"):
            values[f"singular_value_{when}"] = _spectrum(rows, cols, 1 / np.sqrt(max(rows, cols)), random)
            values |= {f"{side}_p_{when}": _p_values(count, random) for side in "uv"}
        for side in "uv":
            values |= {f"{side}_overlap": 1 - _p_values(count, random), f"{side}_match": np.arange(count)}
        vectors.append(_table("pair_vectors", count, place, values))
        ends = itertools.product(("left", "right"), ("base", "tuned"))
        outliers = {f"outliers_{end}_{when}": int(random.integers(50)) for end, when in ends}
        changed: Row = {"relative_change": 0.1 * random.random(), "cosine": 0.99, "identical": False, "intruders": 1}
        pairs.append(names | place | {"tuned_tensor": tensor} | changed | outliers)
        subspaces += [
            place | {"side": side, "decile": decile, "dimensions": count // 10, "overlap": 0.9}
            for side, decile in itertools.product("uv", range(1, 11))
        ]
    _write(files, "pair_vectors", pair_id, pa.concat_tables(vectors))
    _write(files, "pair_subspaces", pair_id, subspaces)
    _write(files, "pairs", pair_id, pairs)
    row = names | {"finished_at": START + timedelta(hours=number), "matrices": len(pairs), "identical": 0}
    _write(files, "comparisons", pair_id, [row])


def _write(files: StoreFiles, name: str, stem: str, rows: pa.Table | list[Row]) -> None:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=SCHEMAS[name])
    files.write(f"{name}/{stem}.parquet", table, file_metadata(METHOD), rows=ROW_GROUP)


def _control(rows: int, cols: int, ensemble: str, random: np.random.Generator) -> pa.Table:
    count = min(rows, cols)
    shared = {"rows": rows, "cols": cols, "ensemble": ensemble, "seed": 0}
    values: Columns = {
        "k": np.arange(count),
        "singular_value": _spectrum(rows, cols, 1 / np.sqrt(max(rows, cols)), random),
    }
    p = {name: random.random(count) for name in ("u_p", "v_p", "u_p_local", "v_p_local")}
    return _table("controls", count, shared, values | p)


def _p_values(count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return p-values that are uniform, and smaller near both ends of the spectrum."""
    place = np.linspace(-1, 1, count, dtype=np.float32)
    return random.random(count, dtype=np.float32) * (1 - 0.9 * place**8)


def _spectrum(rows: int, cols: int, sigma: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Return values between the edges of the Marchenko-Pastur law, in descending order."""
    lo, hi = np.sqrt(min(rows, cols)), np.sqrt(max(rows, cols))
    return np.sort(sigma * (hi - lo + 2 * lo * random.random(min(rows, cols))))[::-1]


def _table(name: str, count: int, shared: Row, values: Columns) -> pa.Table:
    """Return rows with shared values in some columns and arrays in others; the remaining columns are null."""
    columns = []
    for field in SCHEMAS[name]:
        if field.name in values:
            columns.append(pa.array(np.ascontiguousarray(values[field.name])).cast(field.type))
        elif shared.get(field.name) is None:
            columns.append(pa.nulls(count, field.type))
        else:
            columns.append(pa.repeat(pa.scalar(shared[field.name], field.type), count))
    return pa.table(columns, schema=SCHEMAS[name])
