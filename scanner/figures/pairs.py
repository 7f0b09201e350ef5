"""Figures of a pretrained and a fine-tuned model: spectra and p-values before and after, overlaps of singular vectors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures import theme
from scanner.figures.registry import figure, nearest
from scanner.figures.selection import (
    SIDES,
    Matrix,
    check_side,
    choose_model,
    columns,
    decomposed,
    matrices,
    narrow,
    place,
    rows_of,
    slices,
    titled,
    whole,
)
from scanner.rmt.metrics import local_average
from scanner.store import Store

FloatArray = NDArray[np.float64]

MAX_CELLS = 96
"""Maximal number of rows and columns of a heat map of overlaps; more ranks share cells."""
_BEFORE, _AFTER = "before", "after"
#: Part of the relative changes that the axis covers; marks at its ends stand for the others.
_SHOWN = 0.98
_NAMES = {_BEFORE: theme.BLUE, _AFTER: theme.VERMILION}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A row of table `pairs`: one matrix before and after fine-tuning."""

    pair_id: str
    base_model: str
    tuned_model: str
    base_scan_id: str
    tuned_scan_id: str
    tensor: str
    stack: str | None
    layer: int | None
    role: str
    head: int | None
    expert: int | None
    module: str | None
    rows: int
    cols: int
    relative_change: float | None


def pairs(store: Store, base: str | None, tuned: str | None) -> list[Pair]:
    """Return the newest result of every compared matrix of two models, by decreasing change.

    If several pairs of models (or of their revisions) match, the pair that was compared last is used.

    Raises:
        ScannerError: the models were not compared; the message lists the pairs that were.
    """
    rows = rows_of(store, "pairs", base=base, tuned=tuned)
    if not rows:
        names = _compared(store)
        if not names:
            raise ScannerError(f"{store.url} holds no comparison: run 'rmtscan compare BASE TUNED'")
        wanted = f"{printable(base or '?')} -> {printable(tuned or '?')}"
        raise ScannerError(f"the pair {wanted} was not compared: {nearest(wanted, names)}")
    known = {field.name for field in fields(Pair)}
    return [
        Pair(tensor=row["base_tensor"], **{name: value for name, value in row.items() if name in known})
        for row in rows
        if row["model_pair"] == rows[0]["model_pair"]
    ]


def _compared(store: Store) -> list[str]:
    """Return the compared pairs of models as text."""
    rows = rows_of(store, "pairs", base=None, tuned=None)
    return list(dict.fromkeys(f"{printable(row['base_model'])} -> {printable(row['tuned_model'])}" for row in rows))


@figure(
    title="Spectrum and randomness of a matrix before and after fine-tuning",
    about="Singular values by rank, their relative change, and the local mean of p. Without a role and layer, the matrix that "
    "changed most is drawn. Needs a comparison of the pair.",
)
def pair_spectra(
    store: Store,
    *,
    interactive: bool = False,
    base: str | None = None,
    tuned: str | None = None,
    layer: int | None = None,
    role: str | None = None,
    head: int | None = None,
    expert: int | None = None,
    stack: str | None = None,
    tensor: str | None = None,
    side: str = "v",
) -> Any:
    """Draw the singular values before and after fine-tuning, their relative change, and the local mean of p, by rank.

    If several matrices match, the one that changed most is drawn.

    Source: arXiv 2410.17770, v1 Fig. 12.

    Raises:
        ScannerError: the pair was not compared, or the matrix or side is unknown.
    """
    check_side(side)
    found = pairs(store, base, tuned)
    among = [pair for pair in found if (pair.head is None) == (head is None)]
    if not among:
        what = (
            "no slices of heads: run 'rmtscan compare' with --heads"
            if head is not None
            else "slices of heads only: give `head`"
        )
        raise ScannerError(f"the comparison of {printable(found[0].base_model)!r} holds {what}")
    wanted = {"tensor": tensor, "stack": stack, "role": role, "layer": layer, "head": head, "expert": expert}
    pair = narrow(among, found[0].base_model, **wanted)[0]
    values = columns(
        rows_of(
            store,
            "pair_vectors",
            pair_id=pair.pair_id,
            tensor=pair.tensor,
            role=pair.role,
            head=pair.head,
            expert=pair.expert,
        )
    )
    if not values:
        raise ScannerError(f"the store has no singular values of the pair {printable(pair.tensor)!r}")
    look = theme.style(interactive)
    chart, notes = _pair_panels(values, side, look, interactive=interactive)
    change = "" if pair.relative_change is None else f", |ΔW| / |W| = {pair.relative_change:.3g}"
    details = f"{pair.rows} × {pair.cols}{change}; {SIDES[side]} singular vectors ({side})"
    models = _models(store, pair.base_model, pair.base_scan_id, pair.tuned_model, pair.tuned_scan_id)
    return theme.finish(chart, look, f"Before and after: {place(pair)}", [models, details, *notes])


def _models(store: Store, base: str, base_scan: str, tuned: str, tuned_scan: str) -> str:
    """Return the caption of a pair: both models with their revisions."""
    sides = ((base, base_scan), (tuned, tuned_scan))
    return " → ".join(titled(model, _revision(store, scan)) for model, scan in sides)


def _pair_panels(
    values: dict[str, list[Any]], side: str, look: theme.Style, *, interactive: bool
) -> tuple[Any, list[str]]:
    """Return the panels of the singular values, their change and p, and what is said about values beyond the axes."""
    before, after = (np.array(values[f"singular_value_{which}"], dtype=np.float64) for which in ("base", "tuned"))
    p_before, p_after = (
        local_average(np.array(values[f"{side}_p_{which}"], dtype=np.float64)) for which in ("base", "tuned")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        change = 100.0 * (after / before - 1.0)
    last = len(before) - 1
    positive = [float(value) for value in (*before, *after) if value > 0.0]
    low, high = min(positive, default=0.1), max(positive, default=1.0)
    bottom, top = max(low, 1e-3 * high) / 1.2, high * 1.2
    finite = change[np.isfinite(change)]
    reach = _reach(np.abs(finite))
    beyond = int(np.count_nonzero(np.abs(finite) > reach))
    below = int(np.count_nonzero(np.minimum(before, after) < bottom))
    # Ranks whose change is beyond the axis are kept, whatever else is left out.
    ranks = sorted({*theme.thinned(len(before)), *np.flatnonzero(np.abs(np.nan_to_num(change)) > reach).tolist()})
    rows = [
        {
            "k": i,
            "before": float(before[i]),
            "after": float(after[i]),
            "drawn_before": max(float(before[i]), bottom),
            "drawn_after": max(float(after[i]), bottom),
            "change": float(change[i]),
            "drawn_change": float(np.clip(change[i], -reach, reach)),
            "p_before": float(p_before[i]),
            "p_after": float(p_after[i]),
        }
        for i in ranks
    ]

    def panel(name: str, title: str, height: float, scale: alt.Scale, axis: alt.Axis, bottom: bool) -> Any:
        rank = alt.Axis(grid=False, labels=bottom)
        x_scale = alt.Scale(domain=[-0.015 * last, 1.015 * last], nice=False)
        x = alt.X("k:Q", title="rank k" if bottom else None, scale=x_scale, axis=rank)
        layers: list[Any] = []
        lines: list[tuple[str, str | None]] = [("drawn_change", None)]
        if name != "change":
            lines = [(f"{name}before", _BEFORE), (f"{name}after", _AFTER)]
        for field, what in lines:
            line = alt.Chart(theme.inline(rows)).mark_line(strokeWidth=look.line)
            line = line.encode(x=x, y=alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis))
            # The wider line of the model before fine-tuning stays visible where both lines coincide.
            if what == _BEFORE:
                line = line.mark_line(strokeWidth=2.2 * look.line, opacity=0.6)
            layers.append(
                line.encode(color=alt.value(theme.GREEN)) if what is None else theme.named(line, what, _NAMES, look)
            )
        if name == "change":
            out = [row | {"up": row["change"] > 0} for row in rows if abs(row["change"]) > reach]
            for up, shape in ((True, "triangle-up"), (False, "triangle-down")):
                marks = alt.Chart(theme.inline([row for row in out if row["up"] == up])).mark_point(
                    shape=shape, filled=True, size=3 * look.font, color=theme.GREEN, opacity=1, yOffset=3 if up else -3
                )
                if any(row["up"] == up for row in out):
                    layers.append(marks.encode(x=x, y=alt.Y("drawn_change:Q", title=title, scale=scale, axis=axis)))
        if name != "drawn_":
            level = 0.0 if name == "change" else 0.5
            rule = alt.Chart(theme.inline([{"level": level}])).mark_rule(strokeDash=[3, 2], strokeWidth=0.6 * look.line)
            layers.insert(0, rule.encode(y=alt.Y("level:Q", title=title, scale=scale, axis=axis)))
        if interactive:
            points = alt.Chart(theme.inline(rows)).mark_point(opacity=0, size=80, filled=True, clip=True)
            points = points.encode(x=x, y=f"{lines[0][0]}:Q", tooltip=_pair_tips())
            layers.append(theme.zoomable(points, {"drawn_": "values", "change": "change"}.get(name, "p")))
        return alt.layer(*layers).properties(width=look.width, height=round(height * look.height))

    domain = alt.Scale(type="log", domain=[bottom, top], nice=False)
    ticks = alt.Axis(values=theme.log_ticks(bottom, top), format="~g", grid=False)
    chart = alt.vconcat(
        panel("drawn_", "singular value ν", 0.7, domain, ticks, False),
        panel(
            "change",
            "Δν / ν (%)",
            0.45,
            alt.Scale(domain=[-1.08 * reach, 1.08 * reach], nice=False),
            alt.Axis(tickCount=3, grid=False),
            False,
        ),
        panel(
            "p_",
            "p, local mean",
            0.55,
            alt.Scale(domain=[0, 1], nice=False),
            alt.Axis(values=[0, 0.5, 1], format=".1f", grid=False),
            True,
        ),
    ).resolve_scale(color="shared")
    notes = []
    if beyond:
        notes.append(f"▲▼: {beyond} ranks change by more than {reach:.2g} %, by up to {np.abs(finite).max():.3g} %")
    if below:
        notes.append(f"{below} values below {bottom:.2g} are drawn at the lower end, down to {min(positive):.2g}")
    return chart, notes


def _reach(sizes: FloatArray) -> float:
    """Return the end of the axis of changes: all of them, unless a few are much larger than the others."""
    if not sizes.size:
        return 1.0
    largest, most = float(sizes.max()), float(np.quantile(sizes, _SHOWN))
    reach = largest if largest <= 4.0 * most else 1.5 * most
    return max(1e-3, reach)


def _pair_tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("k:Q", title="rank k"),
        alt.Tooltip("before:Q", title="ν before", format=".4g"),
        alt.Tooltip("after:Q", title="ν after", format=".4g"),
        alt.Tooltip("change:Q", title="change, %", format=".3g"),
        alt.Tooltip("p_before:Q", title="p before", format=".3f"),
        alt.Tooltip("p_after:Q", title="p after", format=".3f"),
    ]


@figure(
    title="Overlap of the singular vectors before and after fine-tuning",
    about="|v · v′| of the vectors before (v) and after (v′) fine-tuning as a heat map. Values on the diagonal belong to vectors "
    "that kept their direction and rank. Reads both matrices from their checkpoints.",
)
def overlap(
    store: Store,
    *,
    interactive: bool = False,
    base: str | None = None,
    tuned: str | None = None,
    layer: int | None = None,
    role: str | None = None,
    head: int | None = None,
    expert: int | None = None,
    stack: str | None = None,
    tensor: str | None = None,
    side: str = "v",
) -> Any:
    """Draw the overlap |v_j . v'_i| of the singular vectors of a matrix before (j) and after (i) fine-tuning as a heat map.

    Both matrices are read from their checkpoints. Ranks that share a cell are treated as subspaces: the value of the cell is the
    square root of the share of the tuned vectors' squared length that lies in the span of the base vectors, averaged over the
    tuned vectors. With one rank per cell this is |v_j . v'_i|. Unchanged vectors have 1 on the diagonal for any size of the cells.

    Source: arXiv 2410.17770, v1 sec. 7 and App. D.

    Raises:
        ScannerError: a model, the matrix or the side is unknown, the shapes differ, or a checkpoint cannot be read or has changed.
    """
    check_side(side)
    before, after = _both(store, base, tuned)
    found = whole(before) if head is None else slices(before)
    wanted = {"tensor": tensor, "stack": stack, "role": role, "layer": layer, "head": head, "expert": expert}
    one = narrow(found, found[0].model, **wanted)[0]
    other = _counterpart(one, after)
    first, second = decomposed(store, one), decomposed(store, other)
    v0, v = (parts.right if side == "v" else parts.left for parts in (first, second))
    products = (v @ v0.T).cpu().numpy().astype(np.float64)
    cells = blocks(products)
    look = theme.style(interactive)
    step = -(-max(products.shape) // MAX_CELLS)
    chart = _heat_map(cells, step, side, products.shape, look, interactive=interactive)
    models = _models(store, one.model, one.scan_id, other.model, other.scan_id)
    each = "one rank per cell" if step == 1 else f"{step} × {step} ranks per cell"
    details = f"{one.rows} × {one.cols}, {SIDES[side]} singular vectors ({side}), {each}"
    return theme.finish(chart, look, f"Overlap of singular vectors: {place(one)}", [models, details])


def _both(store: Store, base: str | None, tuned: str | None) -> tuple[list[Matrix], list[Matrix]]:
    """Return the matrices of both models in the revisions that were compared last, or else in the newest revisions.

    Raises:
        ScannerError: a model is not scanned; or it was not compared with any other, and the other model is not given.
    """
    known = rows_of(store, "pairs", base=base, tuned=tuned)
    if known:
        row = known[0]
        sides = (("base_model", "base_scan_id"), ("tuned_model", "tuned_scan_id"))
        before, after = (matrices(store, row[model], _revision(store, row[scan])) for model, scan in sides)
        return before, after
    for name in (base, tuned):
        if name is not None:
            choose_model(store, name)  # raises if the model is not scanned
    if base is None or tuned is None:
        compared = f"compared pairs: {', '.join(_compared(store)) or 'none'}"
        models = ", ".join(dict.fromkeys(printable(row["model"]) for row in store.query("scans").to_pylist()))
        other, given = ("`tuned`", base) if tuned is None else ("`base`", tuned)
        if given is None:
            raise ScannerError(f"give two scanned models as `base` and `tuned`; scanned models: {models or 'none'}")
        raise ScannerError(
            f"{printable(given)!r} was not compared with any model: give the other model as {other}; "
            f"scanned models: {models}; {compared}"
        )
    return matrices(store, base), matrices(store, tuned)


def _revision(store: Store, scan_id: str) -> str | None:
    scan = store.scan_row(scan_id)
    return None if scan is None or scan["revision"] is None else str(scan["revision"])


def _counterpart(one: Matrix, after: list[Matrix]) -> Matrix:
    def key(matrix: Matrix) -> tuple[object, ...]:
        return (matrix.stack, matrix.layer, matrix.role, matrix.head, matrix.expert, matrix.module)

    fitting = [matrix for matrix in after if key(matrix) == key(one)]
    fitting = [matrix for matrix in fitting if matrix.tensor == one.tensor] or fitting
    if not fitting:
        raise ScannerError(f"{printable(after[0].model)!r} has no matrix {place(one)}")
    other = fitting[0]
    if (other.rows, other.cols) != (one.rows, one.cols):
        raise ScannerError(
            f"{place(one)} is {one.rows} x {one.cols} in {printable(one.model)!r} and {other.rows} x {other.cols} in "
            f"{printable(other.model)!r}: the overlap needs equal shapes"
        )
    return other


def blocks(products: FloatArray, most: int = MAX_CELLS) -> FloatArray:
    """Reduce scalar products (tuned x base) to at most `most` x `most` cells: sqrt(sum of squares / tuned ranks)."""
    step = -(-max(products.shape) // most)
    starts = [np.arange(0, size, step) for size in products.shape]
    summed = np.add.reduceat(np.add.reduceat(products**2, starts[0], axis=0), starts[1], axis=1)
    ranks = np.diff(np.append(starts[0], products.shape[0]))
    return np.asarray(np.sqrt(summed / ranks[:, None]))


def _heat_map(
    cells: FloatArray, step: int, side: str, shape: tuple[int, ...], look: theme.Style, *, interactive: bool
) -> Any:
    values = [{"i": i * step, "o": [theme.short(float(cell), 3) for cell in row]} for i, row in enumerate(cells)]
    tuned, base = shape
    x_scale = alt.Scale(domain=[0, base], nice=False)
    y_scale = alt.Scale(domain=[tuned, 0], nice=False)
    x = alt.X("j:Q", title=f"rank of {side} (before)", scale=x_scale, axis=alt.Axis(grid=False, tickCount=5))
    y = alt.Y("i:Q", title=f"rank of {side}′ (after)", scale=y_scale, axis=alt.Axis(grid=False, tickCount=5))
    legend = alt.Legend(
        orient="right",
        # A cell of several ranks has no single product; it shows the root of their mean share.
        title=f"|{side} · {side}′|"
        if step == 1
        else [f"√( Σ ({side} · {side}′)² / {step} )", f"over {step} × {step} ranks"],
        gradientLength=round(0.5 * look.width),
        tickCount=5,
        offset=look.font,
    )
    color = alt.Color("o:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=legend)
    grid = alt.Chart(alt.InlineData(values=values), name="overlap")
    # The data has one row per row of cells, which the chart flattens to columns: large maps stay small files.
    grid = grid.transform_flatten(["o"]).transform_window(number="row_number()", groupby=["i"])
    # Cells overlap slightly, since seams would be visible between adjacent cells.
    grid = grid.transform_calculate(
        j=f"(datum.number - 1) * {step}",
        j2=f"min((datum.number + 0.2) * {step}, {base})",
        i2=f"min(datum.i + 1.2 * {step}, {tuned})",
    )
    grid = grid.mark_rect(clip=True, strokeWidth=0).encode(x=x, x2="j2:Q", y=y, y2="i2:Q", color=color)
    if interactive:
        tips = [
            alt.Tooltip("i:Q", title="rank after, from"),
            alt.Tooltip("j:Q", title="rank before, from"),
            alt.Tooltip("o:Q", title="overlap", format=".3f"),
        ]
        grid = grid.encode(tooltip=tips)
    size = round(0.85 * look.width)
    return grid.properties(width=size, height=size)
