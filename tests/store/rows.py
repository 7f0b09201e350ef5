"""Synthetic rows of every table, and scans made of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from scanner.store import SCHEMAS, Store

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


@dataclass(kw_only=True)
class Matrix:
    """One analyzed matrix: the values that a test needs; the others are invented."""

    tensor: str = "block.0.query"
    layer: int | None = 0
    role: str = "query"
    rows: int = 4
    cols: int = 4
    head: int | None = None
    expert: int | None = None
    stack: str | None = None
    singular_values: Sequence[float] = (4.0, 3.0, 2.0, 1.0)
    u_p: Sequence[float | None] = ()
    v_p: Sequence[float | None] = ()
    more: dict[str, object] = field(default_factory=dict)
    by_rank: dict[str, Sequence[object]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.tensor}/{self.head}/{self.expert}"

    def tables(self, scan_id: str, model: str, revision: str) -> tuple[pa.Table, pa.Table]:
        shared = {
            "scan_id": scan_id,
            "model": model,
            "revision": revision,
            "tensor": self.tensor,
            "stack": self.stack,
            "layer": self.layer,
            "role": self.role,
            "head": self.head,
            "expert": self.expert,
            "rows": self.rows,
            "cols": self.cols,
        }
        count = len(self.singular_values)
        u_p = list(self.u_p) or [0.5] * count
        v_p = list(self.v_p) or [0.25] * count
        one: dict[str, object] = {
            "sigma": 1.0,
            "mp_lower": 0.0,
            "mp_upper": 4.0,
            "outliers_left": 0,
            "outliers_right": 0,
            "rank": count,
        }
        one |= {"u_p_mean": mean(u_p), "v_p_mean": mean(v_p), "sigma_kind": "median", "seconds": 0.5}
        vectors = [
            {
                **shared,
                "k": k,
                "singular_value": value,
                "region": "bulk",
                "u_p": u_p[k],
                "u_p_local": u_p[k],
                "v_p": v_p[k],
                "v_p_local": v_p[k],
                **{name: values[k] for name, values in self.by_rank.items()},
            }
            for k, value in enumerate(self.singular_values)
        ]
        return table("matrices", [{**shared, **one, **self.more}]), table("vectors", vectors)


def mean(values: Iterable[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def table(name: str, rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMAS[name])


def failure(scan_id: str, tensor: str, model: str = "org/model") -> pa.Table:
    row = {"scan_id": scan_id, "model": model, "tensor": tensor, "stage": "read", "error": "OSError", "message": "gone"}
    return table("failures", [{**row}])


def scan_values(*, revision: str = "r1", hours: float = 0, **more: object) -> dict[str, object]:
    """Values that a driver passes to `commit`; the scan was finished `hours` after noon."""
    finished = NOON + timedelta(hours=hours)
    return {"revision": revision, "started_at": NOON, "finished_at": finished, "seconds": 1.5, "skipped": 0, **more}


def add_scan(
    store: Store,
    scan_id: str,
    matrices: Iterable[Matrix],
    *,
    model: str = "org/model",
    revision: str = "r1",
    hours: float = 0,
    failed: Sequence[str] = (),
    **method: object,
) -> None:
    """Commit a scan."""
    writer = store.writer(scan_id, method={"sigma": "median", **method}, model=model)
    for matrix in matrices:
        writer.stage(matrix.key, *matrix.tables(scan_id, model, revision))
    for tensor in failed:
        writer.stage_failure(tensor, failure(scan_id, tensor, model))
    writer.commit(scan_values(revision=revision, hours=hours))


def control(
    rows: int,
    cols: int,
    *,
    singular_values: Sequence[float],
    u_p: Sequence[float | None],
    v_p: Sequence[float | None],
    ensemble: str = "gaussian",
    seed: int = 0,
) -> pa.Table:
    return table(
        "controls",
        [
            {
                "rows": rows,
                "cols": cols,
                "ensemble": ensemble,
                "seed": seed,
                "k": k,
                "singular_value": value,
                "u_p": u_p[k],
                "v_p": v_p[k],
                "u_p_local": u_p[k],
                "v_p_local": v_p[k],
            }
            for k, value in enumerate(singular_values)
        ],
    )


@dataclass(kw_only=True)
class Pair:
    """One matrix before and after fine-tuning: the values that a test needs; the others are invented."""

    tensor: str = "block.0.query"
    layer: int | None = 0
    role: str = "query"
    rows: int = 4
    cols: int = 4
    head: int | None = None
    expert: int | None = None
    stack: str | None = None
    base: Sequence[float] = (4.0, 3.0, 2.0, 1.0)
    tuned: Sequence[float] = (4.0, 3.0, 2.0, 1.0)
    vectors: dict[str, Sequence[float | None]] = field(default_factory=dict)
    """Columns of `pair_vectors`, rank by rank."""
    overlaps: dict[tuple[str, int], float] = field(default_factory=dict)
    """Side and decile to the overlap of `pair_subspaces`."""
    more: dict[str, object] = field(default_factory=dict)
    """Columns of `pairs`."""

    @property
    def key(self) -> str:
        return f"{self.tensor}/{self.head}/{self.expert}"

    def tables(self, names: dict[str, object]) -> dict[str, pa.Table]:
        place: dict[str, object] = {
            "base_tensor": self.tensor,
            "stack": self.stack,
            "layer": self.layer,
            "role": self.role,
            "head": self.head,
            "expert": self.expert,
            "rows": self.rows,
            "cols": self.cols,
        }
        own = {"pair_id": names["pair_id"], **place}
        vectors = [
            {
                **own,
                "k": k,
                "singular_value_base": base,
                "singular_value_tuned": tuned,
                **{name: values[k] for name, values in self.vectors.items()},
            }
            for k, (base, tuned) in enumerate(zip(self.base, self.tuned, strict=True))
        ]
        subspaces = [
            {**own, "side": side, "decile": decile, "dimensions": 1, "overlap": overlap}
            for (side, decile), overlap in self.overlaps.items()
        ]
        pair = {**names, **place, "tuned_tensor": self.tensor, "identical": False, **self.more}
        return {
            "pairs": table("pairs", [pair]),
            "pair_vectors": table("pair_vectors", vectors),
            "pair_subspaces": table("pair_subspaces", subspaces),
        }


def add_comparison(
    store: Store,
    pair_id: str,
    pairs: Sequence[Pair],
    *,
    base: str = "org/base",
    tuned: str = "org/tuned",
    hours: float = 0,
    scans: tuple[str, str] = ("b", "t"),
    **more: object,
) -> None:
    """Commit a comparison of two scans, finished `hours` after noon; `more` are columns of `comparisons`."""
    names: dict[str, object] = {"pair_id": pair_id, "base_scan_id": scans[0], "tuned_scan_id": scans[1]}
    names |= {"base_model": base, "tuned_model": tuned}
    batch = store.comparison(pair_id, method={})
    for pair in pairs:
        batch.stage(pair.key, pair.tables(names))
    row = {**names, "finished_at": NOON + timedelta(hours=hours), "matrices": len(pairs), **more}
    batch.commit([pair.key for pair in pairs], lambda _: row)
