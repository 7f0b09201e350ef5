"""Figure of a spectrum and its vectors under two hypotheses: independent entries of one variance, and the scale null."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import altair as alt
import numpy as np

from scanner.checkpoint.names import printable
from scanner.figures import theme
from scanner.figures.registry import figure
from scanner.figures.selection import (
    Matrix,
    caption,
    choose_matrix,
    distinct,
    in_blocks,
    matrices,
    narrow,
    no_scale_null,
    place,
    rows_of,
    vectors,
)
from scanner.figures.spectrum import LAW, MEASURED, SHOWN, FloatArray, bins, histogram, law
from scanner.store import Store

BINS = 48
"""Number of bins of the spectrum over which p is averaged."""
IID, SCALED, IN_HEADS = "p", "p_scale", "p_within"
SCALE_LAW = "law of the scale null"
COLORS = {IID: theme.BLACK, SCALED: theme.VERMILION, IN_HEADS: theme.ORANGE}
_FEWEST, _IN_A_GAP = 2, 1e-4
SIDES = {"u": "left vectors (output side)", "v": "right vectors (input side)"}


@figure(
    title="Spectrum and vectors under both hypotheses: independent entries of one variance, and the scale null",
    about="Above: histogram of the singular values of one matrix with the Marchenko-Pastur law and the law of random matrices with "
    "the same row and column variances; dashed rules are the edges. Values between the edges are explained by scale. Below: mean p "
    "of the vectors along the spectrum against both (0.5 is random), and p_within where the side consists of attention heads. "
    "Bands: the middle 80 % of the matrices of the role, or of random vectors if a layer is chosen.",
)
def scale(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    layer: int | None = None,
    role: str | None = None,
    head: int | None = None,
    stack: str | None = None,
    tensor: str | None = None,
) -> Any:
    """Draw a spectrum with the Marchenko-Pastur law and that of the scale null, and p and p_scale along the spectrum.

    Without a layer, the spectrum is that of the middle block, and p is averaged over all blocks of the role; the bands hold the
    middle 80 % of them. With a layer, or if there is one matrix only, the bands are two standard errors of random vectors.

    Raises:
        ScannerError: no matrix matches, or it has no scale null.
    """
    found = matrices(store, model, revision)
    name = found[0].model
    if layer is None and tensor is None:
        there = [one for one in in_blocks(found) if (one.head is None) == (head is None)] if _blocks(found) else found
        kept = narrow(there, name, stack=stack, role=role, head=head)
        layers = distinct([one for one in kept if one.role == kept[0].role and one.stack == kept[0].stack], "layer")
        role, stack = kept[0].role, kept[0].stack
        chosen = layers[len(layers) // 2] if layers else None
    else:
        chosen = layer
    matrix = choose_matrix(
        store, model=name, revision=revision, layer=chosen, role=role, head=head, stack=stack, tensor=tensor
    )
    columns = vectors(store, matrix)
    if matrix.scale_upper is None:
        raise no_scale_null([matrix], f"{place(matrix)} of {printable(name)!r} has")
    look = theme.style(interactive)
    one = layer is not None or tensor is not None
    panels = [_spectrum(matrix, columns, look, interactive=interactive)]
    counted = 0
    for side in SIDES:
        rows = rows_of(
            store,
            "scale_profiles",
            model=name,
            revision=revision,
            role=matrix.role,
            module=matrix.module,
            stack=matrix.stack,
            head=matrix.head,
            layer=matrix.layer if one else None,
            tensor=matrix.tensor if one else None,
            side=side,
            bins=min(BINS, matrix.count),
        )
        counted = max([counted, *(row["matrices"] for row in rows)])
        panels.append(_profile(rows, side, matrix, look, random=counted < 2, interactive=interactive))
    chart = alt.vconcat(*panels, spacing=look.font).resolve_scale(color="independent")
    bands = "± 2 standard errors of random vectors" if counted < 2 else f"the middle 80 % of {counted} matrices"
    details = [f"{matrix.rows} × {matrix.cols}; bands of p: {bands}"]
    return theme.finish(chart, look, f"Both hypotheses: {_what(matrix, one)}", [caption([matrix]), *details])


def _blocks(found: Sequence[Matrix]) -> bool:
    return any(one.layer is not None for one in found)


def _what(matrix: Matrix, one: bool) -> str:
    if one or matrix.layer is None:
        return place(matrix)
    return matrix.role + (f", head {matrix.head}" if matrix.head is not None else "")


def scale_law(matrix: Matrix, columns: dict[str, list[Any]]) -> list[tuple[float, float]]:
    """Return the density of the law of the scale null as (nu, density), nu ascending: at the edges and at the singular values.

    A part of the support in which there are fewer than `_FEWEST` singular values is not drawn, because its shape is not known.
    """
    assert matrix.scale_lower is not None
    assert matrix.scale_upper is not None
    lower, upper = matrix.scale_lower, matrix.scale_upper
    pairs = zip(columns["singular_value"], columns["scale_density"], strict=True)
    inside = [(s, density) for s, density in pairs if density is not None and lower < s < upper]
    if not inside:
        return []
    inside.sort()
    least = _IN_A_GAP * max(density for _, density in inside)
    runs = [[*run] for dense, run in groupby(inside, key=lambda pair: pair[1] > least) if dense]
    drawn = [run for run in runs if len(run) >= _FEWEST] or [max(runs, key=len)]
    found: list[tuple[float, float]] = []
    for run in drawn:
        first = lower if run[0] is runs[0][0] and lower > 0.0 else run[0][0]
        last = upper if run[-1] is runs[-1][-1] else run[-1][0]
        # A law that does not vanish at zero begins with its value there.
        found += [*([(first, 0.0)] if lower > 0.0 or run is not drawn[0] else []), *run, (last, 0.0)]
    return found


def _spectrum(matrix: Matrix, columns: dict[str, list[Any]], look: theme.Style, *, interactive: bool) -> Any:
    values = np.array(columns["singular_value"], dtype=np.float64)
    assert matrix.scale_lower is not None
    assert matrix.scale_upper is not None
    borders = bins(matrix.mp_lower, matrix.mp_upper, float(values.min()), float(values.max()))
    counted = histogram(values, borders)
    shown = min(float(borders[-1]), max(SHOWN * matrix.mp_upper, 1.3 * matrix.scale_upper))
    ours = scale_law(matrix, columns)
    curves = [(LAW, law(matrix)), (SCALE_LAW, (_at(ours, 0), _at(ours, 1)))]
    # Near zero the density of a matrix that is almost square is large; the bars say how far up the axis goes.
    top = 1.25 * float(counted.density[borders[:-1] < shown].max())
    top = max(top, 1.1 * min(2.0 * top, max(float(density.max()) for _, (_, density) in curves if len(density))))
    names = {MEASURED: theme.PALE, LAW: theme.BLACK, SCALE_LAW: theme.VERMILION}
    first = min([float(borders[0]), *(edge for edge in (matrix.mp_lower, matrix.scale_lower) if edge > 0.0)])
    x_scale = alt.Scale(domain=[max(0.0, first - 0.04 * shown), shown], nice=False)
    x = alt.X("from:Q", title="singular value ν", scale=x_scale, axis=alt.Axis(grid=False))
    y_scale = alt.Scale(domain=[0, top], nice=False)
    y = alt.Y("density:Q", title="density p(ν)", scale=y_scale, axis=alt.Axis(tickCount=5))
    rows = [
        {"from": float(borders[i]), "to": float(borders[i + 1]), "density": float(height), "count": int(count)}
        for i, (height, count) in enumerate(zip(counted.density, counted.counts, strict=True))
        if count
    ]
    bars = alt.Chart(theme.inline(rows), name="spectrum").mark_bar(clip=True, stroke="white", strokeWidth=0.2)
    bars = bars.encode(x=x, x2="to:Q", y=y, y2=alt.datum(0))
    if interactive:
        tips = [
            alt.Tooltip("count:Q", title="singular values"),
            alt.Tooltip("from:Q", title="from ν", format=".4g"),
            alt.Tooltip("to:Q", title="to ν", format=".4g"),
        ]
        bars = theme.zoomable(bars.encode(tooltip=tips), "spectrum")
    layers = [theme.named(bars, MEASURED, names, look)]
    for name, (at, density) in curves:
        kept = theme.thinned(len(at))
        points = [{"nu": float(at[i]), "density": float(density[i]), "order": i} for i in kept]
        line = alt.Chart(theme.inline(points)).mark_line(clip=True, strokeWidth=1.3 * look.line)
        # The zoom of a layer in a concatenation would belong to every view with a name, and Vega refuses it.
        line = line if interactive else line.properties(name=name.split()[-1])
        line = line.encode(x=alt.X("nu:Q", scale=x_scale), y=alt.Y("density:Q", scale=y_scale), order="order:Q")
        layers.append(theme.named(line, name, names, look))
    edges = [
        {"nu": edge, "what": name}
        for name, both in (
            (LAW, (matrix.mp_lower, matrix.mp_upper)),
            (SCALE_LAW, (matrix.scale_lower, matrix.scale_upper)),
        )
        for edge in both
        if 0.0 < edge < shown
    ]
    rules = alt.Chart(theme.inline(edges)).mark_rule(strokeDash=[3, 2], strokeWidth=0.8 * look.line, clip=True)
    color = alt.Color("what:N", scale=alt.Scale(domain=[*names], range=[*names.values()]))
    layers.append(rules.encode(x=alt.X("nu:Q", scale=x_scale), color=color))
    beyond = int(np.count_nonzero(values > shown))
    if beyond:
        note = {"nu": shown, "density": 0.3 * top, "note": f"{beyond} beyond, up to {values.max():.3g} →"}
        text = alt.Chart(theme.inline([note])).mark_text(align="right", baseline="middle", dx=-3, fontSize=look.font)
        layers.append(text.encode(x=alt.X("nu:Q", scale=x_scale), y=alt.Y("density:Q", scale=y_scale), text="note:N"))
    words = [f"spectrum of {place(matrix)}", f"outside MP → scale null: {_outside(matrix)}"]
    return alt.layer(*layers).properties(width=look.width, height=round(0.8 * look.height), title=_heading(words, look))


def _heading(words: Sequence[str], look: theme.Style) -> alt.TitleParams:
    """Return the title of a panel, and what is said below it."""
    return theme.heading(words[0], look, subtitle=words[1:])


def _at(pairs: Sequence[tuple[float, float]], index: int) -> FloatArray:
    return np.array([pair[index] for pair in pairs], dtype=np.float64)


def _outside(matrix: Matrix) -> str:
    above = f"{matrix.outliers_right} → {matrix.outliers_right_scale} above"
    return (
        above if matrix.rows == matrix.cols else f"{matrix.outliers_left} → {matrix.outliers_left_scale} below, {above}"
    )


def _profile(
    rows: Sequence[dict[str, Any]], side: str, matrix: Matrix, look: theme.Style, *, random: bool, interactive: bool
) -> Any:
    """Return the panel of p along the spectrum of one side; `random`: the bands are those of random vectors."""
    bins_shown = 1 + max(row["bin"] for row in rows)
    data = [{**row, "x": (row["bin"] + 0.5) / bins_shown} for row in rows]
    known = [name for name in COLORS if any(row[name] is not None for row in rows)]
    names = {name: COLORS[name] for name in known}
    highest = max(row[name] for row in rows for name in (*known, "high", "high_scale") if row[name] is not None)
    last = side == [*SIDES][-1]
    shared_y: dict[str, Any] = {
        "title": "mean p",
        "scale": alt.Scale(domain=[0, max(0.75, 1.02 * highest)], nice=False),
        "axis": alt.Axis(values=[0, 0.5, 1], format=".1f", grid=False),
    }
    x_title = "relative rank k / min(m, n), largest singular values first" if last else None
    x = alt.X("x:Q", title=x_title, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(grid=False, values=[0, 0.5, 1]))
    base = alt.Chart(theme.inline(data)).encode(x=x)
    layers: list[Any] = []
    if random:
        error = 2.0 / np.sqrt(12 * matrix.count / bins_shown)
        top = shared_y["scale"].domain[1]
        area = alt.Chart(theme.inline([{"low": max(0.0, 0.5 - error), "high": min(top, 0.5 + error)}]))
        layers.append(area.mark_rect(opacity=0.12).encode(y=alt.Y("low:Q", **shared_y), y2="high:Q"))
    else:
        for name, low, high in ((IID, "low", "high"), (SCALED, "low_scale", "high_scale")):
            band = base.mark_area(opacity=0.18, color=COLORS[name], clip=True)
            layers.append(band.encode(y=alt.Y(f"{low}:Q", **shared_y), y2=f"{high}:Q"))
    half = alt.Chart(theme.inline([{"half": 0.5}])).mark_rule(strokeDash=[3, 2], strokeWidth=0.6 * look.line)
    layers.append(half.encode(y=alt.Y("half:Q", **shared_y)))
    for name in known:
        line = base.mark_line(strokeWidth=1.2 * look.line, clip=True).encode(y=alt.Y(f"{name}:Q", **shared_y))
        layers.append(theme.named(line if interactive else line.properties(name=f"{name}_{side}"), name, names, look))
    if interactive:
        tips = [alt.Tooltip("x:Q", title="relative rank", format=".2f")]
        tips += [alt.Tooltip(f"{name}:Q", format=".3f") for name in known]
        points = base.mark_point(opacity=0, size=80, filled=True, clip=True).encode(y=f"{IID}:Q", tooltip=tips)
        layers.append(theme.zoomable(points, side))
    height = round(0.5 * look.height)
    return alt.layer(*layers).properties(width=look.width, height=height, title=_heading([SIDES[side]], look))
