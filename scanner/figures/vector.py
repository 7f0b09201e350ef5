"""Figure of one singular vector: its entries against the Gaussian of random vectors, and its position in the spectrum."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from scanner.errors import ScannerError
from scanner.figures import theme
from scanner.figures.registry import figure
from scanner.figures.selection import (
    SIDES,
    Matrix,
    caption,
    check_side,
    choose_matrix,
    control,
    decomposed,
    no_p_values,
    place,
    scan_of,
    vectors,
)
from scanner.rmt.ks_null import KsNull
from scanner.store import Store

FloatArray = NDArray[np.float64]

_MEASURED, _RANDOM, _ALL, _CONTROL = "this vector", "random", "all ranks", "control"
_NAMES = {_MEASURED: theme.VERMILION, _RANDOM: theme.BLACK, _ALL: theme.GREEN, _CONTROL: theme.GRAY}
_REACH = 4.0
_UNIT = alt.Scale(domain=[0, 1.06], nice=False)
_UNIT_AXIS = alt.Axis(values=[0, 0.5, 1], format=".1f", grid=False)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """The largest distance D between the distribution function of the entries and the Gaussian's, at entry times sqrt(n)."""

    d: float
    at: float
    measured: float
    expected: float


def largest_distance(scaled: FloatArray) -> Distance:
    """Return D = max_i max(i/n - C(x_i), C(x_i) - (i-1)/n) and its position, C the distribution function of the Gaussian.

    Args:
        scaled: the n entries times sqrt(n), ascending.

    Source: arXiv 2410.17770, sec. 4.
    """
    n = len(scaled)
    expected = ndtr(scaled)
    above, below = np.arange(1, n + 1) / n - expected, expected - np.arange(n) / n
    i, j = int(np.argmax(above)), int(np.argmax(below))
    if above[i] >= below[j]:
        return Distance(d=float(above[i]), at=float(scaled[i]), measured=(i + 1) / n, expected=float(expected[i]))
    return Distance(d=float(below[j]), at=float(scaled[j]), measured=j / n, expected=float(expected[j]))


def null_density(null: KsNull, length: int, reach: float, points: int = 120) -> tuple[FloatArray, FloatArray]:
    """Return the density of D of random vectors, as the negative slope of p(D): (D, density) from 0 to `reach`."""
    borders = np.linspace(0.0, reach, points + 1)
    p = null.p_values(borders, length)
    return 0.5 * (borders[1:] + borders[:-1]), -np.diff(p) / np.diff(borders)


@figure(
    title="One singular vector against the Gaussian of random vectors",
    about="Distribution function and density of the entries with the Gaussian, their Kolmogorov-Smirnov distance D in the "
    "distribution of random vectors, and p along the whole spectrum with the control.",
)
def vector(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    layer: int | None = None,
    role: str | None = None,
    head: int | None = None,
    expert: int | None = None,
    stack: str | None = None,
    tensor: str | None = None,
    side: str = "v",
    k: int = 0,
    ensemble: str | None = None,
) -> Any:
    """Draw one singular vector: (a) distribution function, (b) density, (c) D and its null, (d) p along the spectrum.

    The store does not hold the entries, so the matrix is read from its checkpoint.

    Source: arXiv 2410.17770, v1 Fig. 3.

    Raises:
        ScannerError: the matrix, side or rank is unknown, or the checkpoint cannot be read or has changed.
    """
    check_side(side)
    matrix = choose_matrix(
        store,
        model=model,
        revision=revision,
        layer=layer,
        role=role,
        head=head,
        expert=expert,
        stack=stack,
        tensor=tensor,
    )
    stored = vectors(store, matrix)
    if not 0 <= k < len(stored["k"]):
        raise ScannerError(f"{place(matrix)} has no rank {k}: ranks are 0 (largest) to {len(stored['k']) - 1}")
    if not any(p is not None for p in (*stored["u_p"], *stored["v_p"])):
        raise no_p_values([matrix])
    if stored[f"{side}_p"][k] is None:
        raise ScannerError(
            f"rank {k} of {place(matrix)} was not tested: its singular value is zero, or the vector has a single entry"
        )
    beside = control(store, matrix, ensemble)
    parts = decomposed(store, matrix)
    entries = (parts.right if side == "v" else parts.left)[k].cpu().numpy().astype(np.float64)
    scaled = np.sort(entries) * np.sqrt(len(entries))
    look = theme.style(interactive)
    size = {"width": round(0.42 * look.width), "height": round(0.6 * look.height)}
    tall = float(size["height"])
    method = json.loads(str(scan_of(store, matrix)["method"] or "{}"))
    null = KsNull.parse(str(method.get("null", "table")))
    distance = largest_distance(scaled)
    first = alt.hconcat(
        _cdf(scaled, distance, look).properties(**size, title=_heading("a", look)),
        _pdf(scaled, look).properties(**size, title=_heading("b", look)),
    )
    second = alt.hconcat(
        _null(null, len(entries), distance.d, float(stored[f"{side}_p"][k]), look, tall).properties(
            **size, title=_heading("c", look)
        ),
        _along(stored, side, k, beside, look, interactive=interactive).properties(**size, title=_heading("d", look)),
    )
    chart = alt.vconcat(first, second).resolve_scale(color="shared")
    return theme.finish(chart, look, f"{place(matrix)}: {side}, k = {k}", _details(matrix, side, k, stored))


def _details(matrix: Matrix, side: str, k: int, stored: dict[str, list[Any]]) -> list[str]:
    value, region = stored["singular_value"][k], stored["region"][k]
    length = matrix.cols if side == "v" else matrix.rows
    return [
        caption([matrix], f"{matrix.rows} × {matrix.cols}"),
        f"{SIDES[side]} singular vector, {length} entries; ν = {value:.4g} ({theme.REGIONS.get(region, region)})",
    ]


def _heading(letter: str, look: theme.Style) -> alt.TitleParams:
    return alt.TitleParams(letter, fontSize=look.font + 1, anchor="start", offset=2, frame="group")


def _entries_axis() -> alt.X:
    return alt.X(
        "x:Q", title="entry × √n", scale=alt.Scale(domain=[-_REACH, _REACH], nice=False), axis=alt.Axis(grid=False)
    )


def _curve(points: Sequence[Mapping[str, object]], name: str, look: theme.Style, x: alt.X, y: alt.Y) -> alt.Chart:
    line = alt.Chart(theme.inline(points)).mark_line(strokeWidth=1.2 * look.line, clip=True).encode(x=x, y=y)
    return theme.named(line, name, _NAMES, look)


def _cdf(scaled: FloatArray, distance: Distance, look: theme.Style) -> Any:
    x, y = _entries_axis(), alt.Y("y:Q", title="distribution function", axis=_UNIT_AXIS, scale=_UNIT)
    at = np.linspace(-_REACH, _REACH, 81)
    gaussian = [{"x": float(a), "y": float(c)} for a, c in zip(at, ndtr(at), strict=True)]
    n = len(scaled)
    measured = [{"x": float(scaled[i]), "y": (i + 1) / n} for i in theme.thinned(n, 160)]
    gap = {"x": distance.at, "y": distance.measured, "y2": distance.expected}
    rule = alt.Chart(theme.inline([gap])).mark_rule(color=theme.BLUE, strokeWidth=1.5 * look.line)
    word = alt.Chart(theme.inline([{"x": _REACH, "y": 0.06, "text": f"D = {distance.d:.3g}"}]))
    word = word.mark_text(color=theme.BLUE, fontSize=look.font, align="right", dx=-3, baseline="bottom")
    return alt.layer(
        _curve(gaussian, _RANDOM, look, x, y),
        _curve(measured, _MEASURED, look, x, y),
        rule.encode(x="x:Q", y="y:Q", y2="y2:Q"),
        word.encode(x="x:Q", y="y:Q", text="text:N"),
    )


def _pdf(scaled: FloatArray, look: theme.Style) -> Any:
    x, y = _entries_axis(), alt.Y("y:Q", title="density", axis=alt.Axis(tickCount=3, grid=False))
    bins = int(np.clip(np.sqrt(len(scaled)) * 1.2, 12, 48))
    borders = np.linspace(-_REACH, _REACH, bins + 1)
    counts, _ = np.histogram(scaled, borders)
    heights = counts / (len(scaled) * np.diff(borders))
    rows = [
        {"x": float(borders[i]), "to": float(borders[i + 1]), "y": float(heights[i]), "n": int(counts[i])}
        for i in range(bins)
        if counts[i]
    ]
    bars = alt.Chart(theme.inline(rows)).mark_bar(stroke="white", strokeWidth=0.2, opacity=0.6, clip=True)
    bars = bars.encode(x=x, x2="to:Q", y=y, y2=alt.datum(0))
    at = np.linspace(-_REACH, _REACH, 81)
    gaussian = [{"x": float(a), "y": float(np.exp(-0.5 * a * a) / np.sqrt(2 * np.pi))} for a in at]
    layers = [theme.named(bars, _MEASURED, _NAMES, look), _curve(gaussian, _RANDOM, look, alt.X("x:Q"), alt.Y("y:Q"))]
    beyond = len(scaled) - int(counts.sum())
    if beyond:
        # Two short lines in the corner, since the density and its bars are high in the middle only.
        row = {"x": _REACH, "y": float(max(heights.max(), 0.4)), "text": f"{beyond} beyond\n±{_REACH:g}"}
        note = alt.Chart(theme.inline([row])).mark_text(
            align="right", baseline="top", dx=-2, lineBreak="\n", fontSize=look.small
        )
        note = note.encode(x="x:Q", y="y:Q", text="text:N")
        layers.append(note)
    return alt.layer(*layers)


def _null(null: KsNull, length: int, d: float, p: float, look: theme.Style, tall: float) -> Any:
    typical = 2.2 / np.sqrt(length)
    at, density = null_density(null, length, typical)
    # The two lines of text stand above the density.
    top = 1.05 * float(density.max()) / max(0.3, 1.0 - (2.0 * look.font + 10.0) / tall)
    reach = typical * 1.15
    last = 0.985 * reach
    far = d > last  # what is within the axis stands where it is
    scale = alt.Scale(domain=[0, reach], nice=False)
    x = alt.X("x:Q", title="D", scale=scale, axis=alt.Axis(tickCount=3, grid=False))
    y = alt.Y(
        "y:Q",
        title="null density of D",
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(tickCount=3, grid=False),
    )
    curve = [{"x": float(a), "y": float(b)} for a, b in zip(at, density, strict=True)]
    mark = last if far else d
    p_text = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
    word = {"x": mark, "y": top, "d": f"D = {d:.3g}" + (" →" if far else ""), "p": p_text}
    right = mark > 0.55 * reach
    text = alt.Chart(theme.inline([word])).encode(x="x:Q", y="y:Q")
    where: dict[str, Any] = {
        "align": "right" if right else "left",
        "dx": -4 if right else 4,
        "baseline": "top",
        "fontSize": look.font,
    }
    return alt.layer(
        _curve(curve, _RANDOM, look, x, y),
        alt.Chart(theme.inline([word])).mark_rule(color=theme.BLUE, strokeWidth=1.5 * look.line).encode(x="x:Q"),
        text.mark_text(color=theme.BLUE, dy=2, **where).encode(text="d:N"),
        text.mark_text(color=theme.BLUE, dy=look.font + 4, **where).encode(text="p:N"),
    )


def _along(
    stored: dict[str, list[Any]],
    side: str,
    k: int,
    beside: tuple[str, dict[str, list[Any]]] | None,
    look: theme.Style,
    *,
    interactive: bool,
) -> Any:
    column = f"{side}_p_local"
    ranks = theme.thinned(len(stored["k"]))
    line = [{"k": i, "p": stored[column][i], "nu": stored["singular_value"][i]} for i in ranks]
    last = len(stored["k"]) - 1
    x = alt.X(
        "k:Q",
        title="rank k",
        scale=alt.Scale(domain=[-0.04 * last, 1.04 * last], nice=False),
        axis=alt.Axis(tickCount=3, grid=False),
    )
    y = alt.Y("p:Q", title="p, local mean", scale=_UNIT, axis=_UNIT_AXIS)
    layers: list[Any] = []
    if beside is not None:
        random = [{"k": i, "p": beside[1][column][i]} for i in theme.thinned(len(beside[1]["k"]))]
        pale = alt.Chart(theme.inline(random)).mark_line(strokeWidth=0.6 * look.line, clip=True)
        layers.append(theme.named(pale.encode(x=x, y=y), _CONTROL, _NAMES, look))
    tips = [
        alt.Tooltip("k:Q", title="rank k"),
        alt.Tooltip("nu:Q", title="ν", format=".4g"),
        alt.Tooltip("p:Q", title="p, local mean", format=".3f"),
    ]
    measured = alt.Chart(theme.inline(line)).mark_line(strokeWidth=look.line, clip=True)
    layers.append(theme.named(measured.encode(x=x, y=y), _ALL, _NAMES, look))
    if interactive:
        points = alt.Chart(theme.inline(line)).mark_point(opacity=0, size=60, filled=True, clip=True)
        layers.append(theme.zoomable(points.encode(x=x, y=y, tooltip=tips), "ranks"))
    mark = alt.Chart(theme.inline([{"k": k, "p": stored[column][k]}]))
    layers.append(
        mark.mark_point(filled=True, size=look.font * 4, color=theme.VERMILION, opacity=1).encode(x="k:Q", y="p:Q")
    )
    return alt.layer(*layers)
