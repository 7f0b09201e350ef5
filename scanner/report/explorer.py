"""Data of the explorer of a report: every matrix of a model, compact enough to embed all of them in the page.

Each matrix has a histogram of its singular values, and the singular values, the local means of p and p_scale and the density of the
scale null at about 200 ranks, in one or two bytes per value.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scanner.checkpoint.names import printable
from scanner.figures import theme
from scanner.figures.spectrum import SHOWN, bins, histogram
from scanner.report.statements import rows_of
from scanner.report.wording import Row
from scanner.rmt.marchenko_pastur import FloatArray
from scanner.rmt.metrics import local_average
from scanner.store import Store

POINTS = 200
"""Number of ranks kept per matrix."""
FEWEST = 40
WANTED_POINTS = 60_000
"""Number of ranks of all matrices of a report together up to which a matrix has more than `FEWEST`; each takes about 10 bytes."""
MOST_POINTS = 100_000
"""Maximal number of them; beyond it, layers are left out."""
STEPS = 250
"""p-values are stored as one byte: p times `STEPS`, or `UNKNOWN`."""
UNKNOWN = 255
_MOST_VALUE = 65535


def budget(counts: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Return the number of ranks kept per matrix, and by model the step between kept layers, that limit the size of a page.

    Args:
        counts: number of matrices by model.
    """
    total = max(1, sum(counts.values()))
    points = min(POINTS, max(FEWEST, WANTED_POINTS // total))
    every = -(-total * points // MOST_POINTS) if total * points > MOST_POINTS else 1
    return points, dict.fromkeys(counts, every)


def explorer(store: Store, model: str, matrices: Sequence[Row], *, points: int, every: int) -> dict[str, Any]:
    """Return the matrices of one model and the controls of their shapes.

    Args:
        store: the store to read.
        model: name of the model.
        matrices: rows of statement `matrices`, each with its `anchor`.
        points: approximate number of ranks kept per matrix.
        every: step between kept layers; if it is more than 1, only the first expert is kept.
    """
    expert = None if every == 1 else min((row["expert"] for row in matrices if row["expert"] is not None), default=None)
    spectra = {
        (row["scan_id"], row["tensor"], row["role"], row["expert"]): row
        for row in rows_of(store, "spectra", model=model, expert=expert, every=every)
    }
    found, shapes = [], {}
    for matrix in matrices:
        spectrum = spectra.get((matrix["scan_id"], matrix["tensor"], matrix["role"], matrix["expert"]))
        if spectrum is None:
            continue
        found.append(_matrix(matrix, spectrum, points))
        shapes[f"{matrix['rows']}x{matrix['cols']}"] = (matrix["rows"], matrix["cols"])
    controls = {shape: _control(store, rows, cols, points) for shape, (rows, cols) in shapes.items()}
    counts = {min(rows, cols) for rows, cols in shapes.values()} | {one["count"] for one in found}
    return {
        "model": printable(model),
        "matrices": found,
        "controls": {s: c for s, c in controls.items() if c},
        "ranks": {str(count): theme.thinned(count, points) for count in sorted(counts)},
    }


def _matrix(matrix: Row, spectrum: Row, points: int) -> dict[str, Any]:
    kept = theme.thinned(len(spectrum["s"]), points)
    words = [printable(str(matrix["stack"]))] if matrix["stack"] else []
    words.append(str(matrix["role"]))
    words += [f"({printable(str(matrix['module'])).replace('_', ' ')})"] if matrix["module"] else []
    place = f"layer {matrix['layer']}" if matrix["layer"] is not None else printable(str(matrix["tensor"]))
    place += f", expert {matrix['expert']}" if matrix["expert"] is not None else ""
    return {
        "id": matrix["anchor"],
        "role": " ".join(words),
        "place": place,
        "tensor": printable(str(matrix["tensor"])),
        "rows": matrix["rows"],
        "cols": matrix["cols"],
        "sigma": theme.short(matrix["sigma"], 4),
        "kind": matrix["sigma_kind"],
        "lower": theme.short(matrix["mp_lower"]),
        "upper": theme.short(matrix["mp_upper"]),
        "left": matrix["outliers_left"],
        "right": matrix["outliers_right"],
        "u_p": theme.short(matrix["u_p"], 3),
        "v_p": theme.short(matrix["v_p"], 3),
        "histogram": _histogram(matrix, spectrum["s"]),
        "count": len(spectrum["s"]),
        "most": theme.short(float(spectrum["s"][0])),
        "s": _values(spectrum["s"], kept),
        "u": _p_values(spectrum["u"], kept),
        "v": _p_values(spectrum["v"], kept),
        **_scale_null(matrix, spectrum, kept),
    }


def _scale_null(matrix: Row, spectrum: Row, kept: Sequence[int]) -> dict[str, Any]:
    """Return edges, counts, density and local means of p of the scale null; nothing if the matrix has none."""
    if matrix["scale_upper"] is None:
        return {}
    p = {side: local_average(_floats(spectrum[f"{side}_scale"])).tolist() for side in "uv"}
    law = _floats(spectrum["law"])
    most = float(np.nanmax(law, initial=0.0))
    return {
        "scale": {
            "lower": theme.short(matrix["scale_lower"]),
            "upper": theme.short(matrix["scale_upper"]),
            "left": matrix["outliers_left_scale"],
            "right": matrix["outliers_right_scale"],
            "most": theme.short(most),
            "density": _p_values((law / (most or 1.0)).tolist(), kept),
            "u": _p_values(p["u"], kept),
            "v": _p_values(p["v"], kept),
        }
    }


def _floats(values: Sequence[float | None]) -> FloatArray:
    return np.array(values, dtype=np.float64)


def _histogram(matrix: Row, singular_values: Sequence[float]) -> dict[str, Any] | None:
    """Return counts in equal bins and the number of values beyond the last; None if the matrix has no bulk."""
    lower, upper = matrix["mp_lower"], matrix["mp_upper"]
    if lower is None or upper is None or not upper > lower:
        return None
    values = np.array(singular_values, dtype=np.float64)
    borders = bins(lower, upper, float(values.min()), float(values.max()))
    counted = histogram(values, borders)
    shown = int(np.searchsorted(borders, SHOWN * upper, side="right"))
    counts = [int(count) for count in counted.counts[: max(1, shown - 1)]]
    return {
        "start": theme.short(float(borders[0])),
        "width": theme.short(float(borders[1] - borders[0])),
        "counts": counts,
        "beyond": int(len(values) - sum(counts)),
        "largest": theme.short(float(values.max()), 4),
    }


def _control(store: Store, rows: int, cols: int, points: int) -> dict[str, str] | None:
    found = rows_of(store, "controls", rows=rows, cols=cols)
    if len(found) != min(rows, cols):
        return None
    kept = theme.thinned(len(found), points)
    return {side: _p_values([row[side] for row in found], kept) for side in ("u", "v")}


def _p_values(values: Sequence[float | None], kept: Sequence[int]) -> str:
    """Return values between 0 and 1 at some ranks as base64 of one byte each."""
    chosen = _floats(values)[[*kept]]
    known = np.isfinite(chosen)
    packed = np.where(known, np.round(STEPS * np.clip(np.where(known, chosen, 0.0), 0.0, 1.0)), UNKNOWN)
    return base64.b64encode(packed.astype(np.uint8).tobytes()).decode("ascii")


def _values(values: Sequence[float], kept: Sequence[int]) -> str:
    """Return singular values at some ranks as base64 of two bytes each, little-endian, in units of the largest."""
    chosen = _floats(values)
    scaled = np.round(_MOST_VALUE * chosen[[*kept]] / (chosen[0] or 1.0))
    return base64.b64encode(scaled.astype("<u2").tobytes()).decode("ascii")
