"""A synthetic comparison of two models, committed to a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from scanner.store import SCHEMAS, Store


def add_pair(
    store: Store,
    base: str,
    tuned: str,
    matrices: Iterable[tuple[str, int, int, int]],
    *,
    method: Mapping[str, object],
    identical: int | None = None,
) -> None:
    """Commit a comparison of matrices (role, layer, rows, cols); layer n changed by (n + 1) %, layer `identical` by nothing."""
    batch = store.comparison("pair", method=method)
    keys = []
    for role, layer, rows, cols in matrices:
        place = {
            "pair_id": "pair",
            "base_tensor": f"block.{layer}.{role}",
            "layer": layer,
            "role": role,
            "rows": rows,
            "cols": cols,
        }
        same = layer == identical
        pair = place | {
            "base_model": base,
            "tuned_model": tuned,
            "tuned_tensor": place["base_tensor"],
            "identical": same,
            "relative_change": 0.0 if same else (layer + 1) / 100,
            "cosine": 1.0 if same else 0.999,
            "outliers_left_base": 1,
            "outliers_left_tuned": 1,
            "outliers_right_base": 2,
            "outliers_right_tuned": 3,
            "intruders": 0 if same else layer,
        }
        count = min(rows, cols)
        vectors = [
            place
            | {
                "k": k,
                "singular_value_base": float(count - k),
                "singular_value_tuned": 1.01 * (count - k),
                "u_p_base": 0.5,
                "u_p_tuned": 0.4,
                "v_p_base": 0.5,
                "v_p_tuned": 0.4,
                "u_overlap": 1 - 0.5 * k / count,
                "u_match": k,
                "v_overlap": 1 - 0.5 * k / count,
                "v_match": k,
            }
            for k in range(count)
        ]
        spaces = [
            place | {"side": side, "decile": decile, "dimensions": 2, "overlap": 0.8 + decile / 100}
            for side in ("u", "v")
            for decile in range(1, 11)
        ]
        found = {"pairs": [pair], "pair_vectors": vectors, "pair_subspaces": spaces}
        tables = {table: pa.Table.from_pylist(lines, schema=SCHEMAS[table]) for table, lines in found.items()}
        batch.stage(str(place["base_tensor"]), tables)
        keys.append(str(place["base_tensor"]))
    ids = {"base_scan_id": "scan0", "tuned_scan_id": "scan1"}
    unmatched = '{"only_tuned": ["extra.weight"]}'
    counts = {"matrices": len(keys), "identical": int(identical is not None), "unmatched": 1, "failed": 0}
    row = {"pair_id": "pair", "base_model": base, "tuned_model": tuned, "unmatched_tensors": unmatched}
    batch.commit(keys, lambda _: row | ids | counts)
