"""What a site says about one model: an entry of the index, aggregates, the list of matrices, and their vectors.

The functions take what a store says, return plain data and write nothing. Names from a checkpoint lose control characters here.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from scanner.checkpoint.names import printable
from scanner.errors import StoreError
from scanner.figures.theme import short
from scanner.report.page import findings_of_model, findings_of_pair
from scanner.report.statements import rows_of as report_rows
from scanner.report.wording import Finding, in_shell
from scanner.rmt import product_law
from scanner.site.answers import Answers, Changed
from scanner.site.models import Model, Pair, key_of
from scanner.store import Store
from scanner.store.publish import without_local_paths
from scanner.store.tables import json_object

Row = Mapping[str, Any]

DECILES = 10
COLUMNS = ("singular_value", "u_p", "v_p", "u_p_scale", "v_p_scale", "scale_density")
"""Columns of a file of vectors, in this order for every matrix; float32, NaN where the store has no value."""
STEPS = 250
"""p-values of aggregates are stored as one byte: p times `STEPS`, or `UNKNOWN`."""
UNKNOWN = 255
_MOST_WORD, _MOST_ROLE = 80, 24
_CLASS = re.compile(r"(For[A-Z]\w*|Model|LMHeadModel)$")
#: Columns of the list of matrices that are numbers, by their names in the store.
_NUMBERS = (
    *("layer", "expert", "rows", "cols", "sigma", "mp_lower", "mp_upper", "outliers_left", "outliers_right"),
    *("scale_lower", "scale_upper", "outliers_left_scale", "outliers_right_scale", "u_p", "v_p", "p", "p_scale"),
    *("stable_rank", "effective_rank", "spectral_norm", "mp_ks"),
)
_WORDS = ("stack", "role", "module", "dtype", "sigma_kind")
#: The same of slices and products of heads; a tensor has many.
_SLICE_NUMBERS = ("head", "kv_head", *(name for name in _NUMBERS if name != "expert"))
_SLICE_WORDS = ("tensor", "between", *_WORDS)
_PRODUCTS = ("qk", "ov")
_LAW_POINTS = 121


def entry(model: Model, found: Answers, headline: str) -> dict[str, Any]:
    """Return the entry of a model in the index, at most 2 kB as JSON: facts for facets, and the heat strip.

    `heat` has for every role ten pairs of digits: the mean p of both sides by decile in hundredths, smallest singular values first,
    or `--` if there is none.

    Args:
        model: the model.
        found: what the store says about it.
        headline: what stands out most.

    Raises:
        StoreError: the model left the store since it was listed.
    """
    row = found.overview
    if row is None or not found.scans:
        raise StoreError(f"{printable(model.name)!r} left the store while the site was written: write it again")
    about = {
        "key": model.key,
        "name": printable(model.name),
        "family": _family(row),
        "architecture": _word(row["architecture"]),
        "base": _word(row["base_model"]),
        "format": _word(found.scans[0]["format"]),
        "dtype": _word(found.scans[0]["dtype"]),
        "parameters": row["parameters"],
        "finished": when(row["finished_at"]),
        "layers": row["layers"],
        "matrices": row["matrices"],
        "failed": row["failed"],
        "p": short(row["p"], 3),
        "below": short(row["below_percent"], 3),
        "above": short(row["above_percent"], 3),
        "learned": _word(row["learned_role"], _MOST_ROLE),
        "heat": heat(found.roles),
        "headline": shown(headline)[:200],
    }
    if model.difference:
        about["difference"] = True
    tunes = [key_of(pair.tuned) for pair in _tunes(model)]
    if tunes:
        about["tunes"] = tunes[:40]
    bases = [key_of(pair.base) for pair in model.pairs if pair.tuned == model.name and pair.base not in pair.gone]
    if bases:
        about["bases"] = bases[:5]
    return {name: value for name, value in about.items() if value is not None}


def heat(rows: Iterable[Row]) -> dict[str, str]:
    """Return the heat strip of a model from the rows of query `role_table`: see `entry`."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        cells = found.setdefault(_word(row["role"], _MOST_ROLE) or "", [[] for _ in range(DECILES)])
        for decile in range(DECILES):
            value = row[f"d{decile + 1}"]
            if value is not None:
                cells[decile].append(value)
    return {
        role: "".join(f"{min(99, round(100 * sum(cell) / len(cell))):02d}" if cell else "--" for cell in cells)
        for role, cells in list(found.items())[:16]
    }


def aggregates(model: Model, found: Answers, controls: Sequence[Row], unfinished: int) -> dict[str, Any]:
    """Return the aggregates of a model: 20 to 50 kB as JSON for the usual sizes.

    `map` has places (stack, layer, number of matrices by role), roles, and for each measure a list by place of lists by role.
    `deciles` is base64 of one byte per value (`STEPS`): place, role, decile, and u, v, u_scale, v_scale.

    Args:
        model: the model.
        found: what the store says about it.
        controls: rows of query `control_check`.
        unfinished: number of matrices of scans that are not finished.
    """
    newest = found.scans[0]
    stands_out = findings_of_model(model.name, found.matrices, found.scans, controls, found.asked)
    return {
        "key": model.key,
        "name": printable(model.name),
        "difference": model.difference,
        "facts": _facts(newest),
        "scans": [
            {
                "revision": printable(str(scan["revision"] or ""))[:12],
                "finished": when(scan["finished_at"]),
                "matrices": scan["matrices"],
                "triplets": scan["vectors"],
                "failed": scan["failed"],
                "skipped": scan["skipped"] or 0,
                "sigma": _word(json_object(scan["method"]).get("sigma")),
                "seconds": short(scan["seconds"], 3),
            }
            for scan in found.scans[:20]
        ],
        "coverage": {
            "analyzed": newest["matrices"],
            "skipped": newest["skipped"] or 0,
            "failed": newest["failed"],
            "reasons": _reasons(newest["skipped_tensors"]),
            "failures": [
                {
                    "tensor": _word(row["tensor"], 200),
                    "error": _word(row["error"]),
                    "message": without_local_paths(printable(str(row["message"] or ""))),
                }
                for row in found.failures
            ],
        },
        "unfinished": unfinished,
        "slices": len(found.slices),
        "matrices": len(found.matrices),
        "findings": [_finding(one) for _, one in stands_out],
        "map": _map(found.matrices, found.deciles),
        "pairs": [_pair(one, {name for pair in model.pairs for name in pair.gone}) for one in found.changed],
        "tunes": [{"key": key_of(pair.tuned), "name": printable(pair.tuned)} for pair in _tunes(model)][:100],
    }


def _tunes(model: Model) -> list[Pair]:
    """Return the comparisons of a model with its fine-tunes that have a page."""
    return [pair for pair in model.pairs if pair.base == model.name and pair.tuned not in pair.gone]


#: Measures of the maps: column of the store, and significant digits.
_MEASURES = {
    "p": ("p", 3),
    "p_scale": ("p_scale", 3),
    "below": ("outliers_left", 3),
    "above": ("outliers_right", 3),
    "below_scale": ("outliers_left_scale", 3),
    "above_scale": ("outliers_right_scale", 3),
    "sigma": ("sigma", 3),
}


@dataclass(frozen=True)
class Vectors:
    """The file with the vectors of a model, and where each matrix is in it."""

    content: bytes
    offsets: list[int | None]
    """First byte of each matrix; None for a matrix without vectors."""
    counts: list[int]
    """Number of triplets of each matrix: its block has `counts` x `len(COLUMNS)` values."""


def vectors(table: pa.Table, matrices: Sequence[Row]) -> Vectors:
    """Return the singular triplets of some matrices as one binary file: for each matrix, one float32 column after the other.

    Args:
        table: rows of statement `vectors` of their model.
        matrices: the matrices, in the order of the file.

    A matrix takes 4 * len(COLUMNS) * min(rows, cols) bytes, little-endian, so that a page fetches one matrix by its range.
    """
    names = ("scan_id", "tensor", "role", "head", "expert", "triplets")
    sizes = {key[:-1]: key[-1] for key in zip(*(table[name].to_pylist() for name in names), strict=True)}
    starts, at = {}, 0
    for key, size in sizes.items():
        starts[key] = at
        at += size
    columns = [_floats(table[name]) for name in COLUMNS]
    blocks: list[bytes] = []
    offsets: list[int | None] = []
    counts: list[int] = []
    position = 0
    for matrix in matrices:
        key = tuple(matrix.get(name) for name in names[:-1])
        size = sizes.get(key, 0)
        counts.append(size)
        offsets.append(position if size else None)
        if size:
            block = b"".join(column[starts[key] : starts[key] + size].tobytes() for column in columns)
            blocks.append(block)
            position += len(block)
    return Vectors(content=b"".join(blocks), offsets=offsets, counts=counts)


def _floats(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float32]]:
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    joined = np.concatenate(parts) if parts else np.empty(0)
    return np.asarray(joined, dtype="<f4")


def listed(
    matrices: Sequence[Row], stored: Vectors, file: str, controls: Mapping[str, str], *, slices: bool = False
) -> dict[str, Any]:
    """Return the list of the matrices of a model, by columns, with the places of their vectors in `file`.

    Columns of words are indices into `words`, so that a model with thousands of experts stays small.
    With products of heads, `laws` has the density of their law by shape: see `_law`.

    Args:
        matrices: rows of statement `matrices` of the report, of whole matrices or of slices.
        stored: the vectors of these matrices.
        file: name of the file with the vectors.
        controls: files of random controls by shape, as `ROWSxCOLS`.
        slices: whether they are slices and products of heads.
    """
    words: dict[str, list[str]] = {}
    columns: dict[str, list[Any]] = {}
    if not slices:
        columns["tensor"] = [printable(str(row["tensor"])) for row in matrices]
    for name in _SLICE_WORDS if slices else _WORDS:
        texts = [_name(row[name]) for row in matrices]
        words[name] = sorted({text for text in texts if text is not None})
        place = {text: number for number, text in enumerate(words[name])}
        columns[name] = [None if text is None else place[text] for text in texts]
    for name in _SLICE_NUMBERS if slices else _NUMBERS:
        columns[name] = [_finite(short(row[name], 5)) for row in matrices]
    shapes = sorted({f"{row['rows']}x{row['cols']}" for row in matrices})
    about = {
        "file": file,
        "order": list(COLUMNS),
        "words": words,
        "columns": {**columns, "offset": stored.offsets, "count": stored.counts},
        "controls": {shape: controls[shape] for shape in shapes if shape in controls},
    }
    if slices:
        products = {
            (row["rows"], row["cols"], count)
            for row, count in zip(matrices, stored.counts, strict=True)
            if row["role"] in _PRODUCTS and 0 < count <= min(row["rows"], row["cols"])
        }
        about["laws"] = {"x".join(map(str, shape)): _law(*shape) for shape in sorted(products)}
    return about


def _law(rows: int, cols: int, width: int) -> list[list[float]]:
    """Return singular values in units of the square root of sigma^2 rows cols / width, and the density of random products there."""
    c, d = width / rows, width / cols
    low, high = np.sqrt(product_law.edges(c, d))
    # Dense at the edges, where the density vanishes like a square root; at zero it is infinite.
    nu = 0.5 * (low + high) - 0.5 * (high - low) * np.cos(np.linspace(0.0, np.pi, _LAW_POINTS))
    density = 2.0 * nu * product_law.pdf(nu**2, c, d)
    return [[float(f"{value:.4g}") for value in values] for values in (nu, density)]


def heads(slices: Sequence[Row]) -> dict[str, Any]:
    """Return the table of the slices and products of heads of a model: means by place, role and head.

    `places` has (stack, layer), and every role for each measure a list by place of lists by head; a measure that no matrix of the
    role has is left out.

    Args:
        slices: rows of statement `matrices` of the report, of slices and products.
    """
    places = list(dict.fromkeys((row["stack"], row["layer"]) for row in slices))
    at = {place: number for number, place in enumerate(places)}
    found: dict[tuple[str, str | None], list[Row]] = {}
    for row in slices:
        found.setdefault((row["role"], row["module"]), []).append(row)
    roles = []
    for (role, module), rows in found.items():
        numbers = sorted({row["head"] for row in rows})
        column = {head: number for number, head in enumerate(numbers)}
        cells: list[list[list[Row]]] = [[[] for _ in numbers] for _ in places]
        for row in rows:
            cells[at[row["stack"], row["layer"]]][column[row["head"]]].append(row)
        means = {
            name: [[_mean(cell, stored, 3) for cell in line] for line in cells]
            for name, (stored, _) in _MEASURES.items()
            if any(row[stored] is not None for row in rows)
        }
        roles.append(
            {
                "role": _name(role),
                "module": _name(module),
                "between": _word(rows[0]["between"]),
                "shape": _shapes(rows, role, module),
                "heads": numbers,
                "means": means,
            }
        )
    return {"places": [[_name(stack), layer] for stack, layer in places], "roles": roles}


def control(store: Store, rows: int, cols: int) -> bytes | None:
    """Return the local means of p of the random controls of a shape: u, then v, float32; None without controls."""
    found = report_rows(store, "controls", rows=rows, cols=cols)
    if len(found) != min(rows, cols):
        return None
    values = [[np.nan if row[side] is None else row[side] for row in found] for side in ("u", "v")]
    return np.asarray(values, dtype="<f4").tobytes()


def _map(matrices: Sequence[Row], deciles: Sequence[Row]) -> dict[str, Any]:
    """Return the map of places and roles: see `aggregates`."""
    places = list(dict.fromkeys((row["stack"], row["layer"]) for row in matrices))
    roles = list(dict.fromkeys((row["role"], row["module"]) for row in matrices))
    at_place, at_role = ({one: number for number, one in enumerate(found)} for found in (places, roles))
    cells: list[list[list[Row]]] = [[[] for _ in roles] for _ in places]
    for row in matrices:
        cells[at_place[row["stack"], row["layer"]]][at_role[row["role"], row["module"]]].append(row)
    packed = np.full((len(places), len(roles), DECILES, 4), UNKNOWN, dtype=np.uint8)
    for row in deciles:
        place, role = at_place.get((row["stack"], row["layer"])), at_role.get((row["role"], row["module"]))
        if place is None or role is None or not 1 <= row["decile"] <= DECILES:
            continue
        for number, name in enumerate(("u", "v", "u_scale", "v_scale")):
            if row[name] is not None:
                packed[place, role, row["decile"] - 1, number] = round(STEPS * min(1.0, max(0.0, row[name])))
    return {
        "places": [[_name(stack), layer] for stack, layer in places],
        "roles": [
            _name(role) if module is None else f"{_name(role)} ({printable(str(module)).replace('_', ' ')})"
            for role, module in roles
        ],
        "counts": [[len(cell) for cell in row] for row in cells],
        "means": {
            name: [[_mean(cell, column, digits) for cell in row] for row in cells]
            for name, (column, digits) in _MEASURES.items()
        },
        "shapes": [_shapes(matrices, role, module) for role, module in roles],
        "deciles": base64.b64encode(packed.tobytes()).decode("ascii"),
    }


def _shapes(matrices: Sequence[Row], role: str, module: str | None) -> str:
    shapes = dict.fromkeys(
        f"{row['rows']} × {row['cols']}" for row in matrices if (row["role"], row["module"]) == (role, module)
    )
    return ", ".join([*shapes][:3]) + (" …" if len(shapes) > 3 else "")


def _mean(rows: Sequence[Row], column: str, digits: int) -> Any:
    values = [row[column] for row in rows if row[column] is not None and math.isfinite(row[column])]
    return short(float(sum(values) / len(values)), digits) if values else None


def _pair(found: Changed, gone: Collection[str]) -> dict[str, Any]:
    """Return what fine-tuning changed: by role, and by decile, of the pair that was compared last.

    `base_key` is None if the base has no page.
    """
    pair = found.comparison
    base, tuned = pair["base_model"], pair["tuned_model"]
    numbers = ("change_median", "change_max", "delta_rank", "delta_above", "delta_p")
    deciles: dict[int, list[float]] = {}
    for row in found.deciles:
        values = [row[name] for name in ("u_subspace_turned", "v_subspace_turned") if row[name] is not None]
        values = values or [row[name] for name in ("u_turned", "v_turned") if row[name] is not None]
        if values:
            deciles.setdefault(row["decile"], []).append(sum(values) / len(values))
    return {
        "base": printable(base),
        "base_key": None if base in gone else key_of(base),
        "tuned": printable(tuned),
        "tuned_key": key_of(tuned),
        "difference_key": key_of(f"delta:{base}..{tuned}"),
        "matrices": pair["matrices"],
        "identical": pair["identical"] or 0,
        "unmatched": pair["unmatched"] or 0,
        "findings": [_finding(one) for _, one in findings_of_pair(pair, found.matrices, found.deciles)],
        "command": f"rmtscan compare {in_shell(base)} {in_shell(tuned)}",
        "roles": [
            {
                "role": _name(row["role"]),
                "matrices": row["matrices"],
                **{name: _finite(short(row[name], 3)) for name in numbers},
                "intruders": row["intruders"],
                "below": _before_and_after(row["below_base"], row["below_tuned"]),
                "above": _before_and_after(row["above_base"], row["above_tuned"]),
            }
            for row in found.roles
        ],
        "turned": [
            short(sum(deciles[d]) / len(deciles[d]), 3) if d in deciles else None for d in range(1, DECILES + 1)
        ],
    }


def _before_and_after(base: float | None, tuned: float | None) -> str | None:
    return None if base is None or tuned is None else f"{base:.1f} \N{RIGHTWARDS ARROW} {tuned:.1f}"


def _facts(scan: Row) -> dict[str, Any]:
    source = str(scan["source"] or "")
    return {
        "architecture": _word(scan["architecture"]),
        "base": _word(scan["base_model"]),
        "revision": printable(str(scan["revision"] or ""))[:12],
        "source": printable(source) if "://" in source and not source.startswith("file:") else None,
        "format": _word(scan["format"]),
        "dtype": _word(scan["dtype"]),
        "parameters": scan["parameters"],
        "finished": when(scan["finished_at"]),
        "scan": scan["scan_id"],
        "version": _word(scan["scanner_version"]),
    }


def _reasons(text: str | None) -> list[list[Any]]:
    found = [
        (str(reason), len(names)) for reason, names in json_object(text or "{}").items() if isinstance(names, list)
    ]
    return [
        [without_local_paths(printable(reason)), count] for reason, count in sorted(found, key=lambda one: -one[1])[:20]
    ]


def _finding(one: Finding) -> dict[str, Any]:
    return {
        "headline": shown(one.headline),
        "detail": shown(one.detail),
        "query": shown(one.query),
        "warning": one.warning,
    }


def _family(row: Row) -> str | None:
    """Return the family of a model: the class of its architecture without the name of the task."""
    architecture = row["architecture"]
    return None if not architecture else _CLASS.sub("", _word(architecture) or "") or _word(architecture)


def _name(value: object) -> str | None:
    """Return a name that pages look up in one another's data: it is the same in all files of a model."""
    return None if value is None else printable(str(value))


def _word(value: object, most: int = _MOST_WORD) -> str | None:
    if value is None or value == "":
        return None
    text = printable(str(value))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shown(text: str) -> str:
    """Return a sentence without control characters; the names in it are short already."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def when(value: datetime | None) -> str | None:
    """Return a time as `2026-11-01 12:00` in UTC."""
    return None if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
