"""Style of the figures: a palette safe for color blindness, sizes for paper and screen, and compact inline data."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

BLACK, GRAY, PALE = "#000000", "#8C8C8C", "#D0D0D0"
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
"""Palette of Okabe and Ito, "Color universal design" (2008), without the yellow, which is hard to see on white."""

ROLE_COLORS = {
    "query": BLUE,
    "key": SKY,
    "value": GREEN,
    "attn_out": PURPLE,
    "mlp_up": ORANGE,
    "mlp_gate": "#999933",
    "mlp_down": VERMILION,
    "embedding": "#882255",
    "router": "#332288",
    "other": "#777777",
    "lm_head": "#000000",
}
"""Color of a role in all figures. Colors beyond those of Okabe and Ito are from Paul Tol's "muted" scheme."""
ROLE_DASHES = {role: [4, 2] if role.startswith("mlp") else [1, 0] for role in ROLE_COLORS}
"""Dashes of a role: solid for attention, dashed for the MLP, so that color is not the only distinction."""
ROLE_SHAPES = {
    "query": "circle",
    "key": "square",
    "value": "diamond",
    "attn_out": "cross",
    "mlp_up": "triangle-up",
    "mlp_gate": "triangle-right",
    "mlp_down": "triangle-down",
    "embedding": "stroke",
    "router": "triangle-left",
    "other": "wedge",
    "lm_head": "arrow",
}
REGIONS = {"left": "below the bulk", "bulk": "bulk", "right": "above the bulk"}
"""Stored regions of the spectrum, from small to large singular values, and their names in prose."""
REGION_LABEL = f"({json.dumps(REGIONS)})[datum.label] || datum.label"
"""Vega expression of the label of a region in a legend."""

MAX_POINTS = 240
"""Maximal number of points of a line; more are not visible at paper size."""
_FEW = 12


@dataclass(frozen=True, kw_only=True)
class Style:
    """Sizes: in points for a column of a paper (3.4 inches are 245 points), in pixels for a screen."""

    width: int
    height: int
    font: int
    line: float

    @property
    def small(self) -> int:
        """Font size inside a plot."""
        return self.font - 1


PAPER = Style(width=200, height=120, font=7, line=1.0)
SCREEN = Style(width=520, height=300, font=13, line=1.8)


def style(interactive: bool) -> Style:
    """Return the sizes of a figure for the screen or for paper."""
    return SCREEN if interactive else PAPER


def finish(chart: Any, look: Style, title: str, subtitle: Sequence[str]) -> Any:
    """Return the chart with its title and the common configuration, as `Figure.draw` returns it."""
    wide = look.width * 1.35
    heading = alt.TitleParams(
        title, subtitle=list(subtitle), anchor="start", frame="bounds", offset=look.font, limit=wide
    )
    return (
        chart.properties(title=heading, padding=look.font // 2, background="white")
        .configure(font="Liberation Sans, Arial, Helvetica, sans-serif")
        .configure_view(stroke=PALE, strokeWidth=0.5)
        .configure_axis(
            labelFontSize=look.font,
            titleFontSize=look.font + 1,
            titleFontWeight="normal",
            titlePadding=look.font * 0.5,
            labelPadding=2,
            gridColor="#EEEEEE",
            gridWidth=0.5,
            domainColor=BLACK,
            domainWidth=0.5,
            tickColor=BLACK,
            tickWidth=0.5,
            tickSize=3,
            labelOverlap=True,
        )
        .configure_legend(
            labelFontSize=look.font,
            titleFontSize=look.font,
            titleFontWeight="normal",
            symbolSize=look.font * 7,
            symbolStrokeWidth=look.line * 1.4,
            labelLimit=look.width,
            rowPadding=1,
            columnPadding=look.font,
            titlePadding=2,
            gradientThickness=look.font,
            offset=look.font // 2,
        )
        .configure_title(
            fontSize=look.font + 1,
            subtitleFontSize=look.font,
            subtitleColor="#444444",
            subtitlePadding=2,
        )
        .configure_header(labelFontSize=look.font, titleFontSize=look.font, labelPadding=2, titleFontWeight="normal")
        .configure_concat(spacing=look.font * 1.5)
        .configure_facet(spacing=look.font * 1.5)
    )


def named(chart: alt.Chart, name: str, colors: Mapping[str, str], **legend: Any) -> alt.Chart:
    """Give a layer its name and color; all layers share one scale and one legend above the plot."""
    scale = alt.Scale(domain=[*colors], range=[*colors.values()])
    options: dict[str, Any] = {
        "orient": "top",
        "title": None,
        "symbolType": "stroke",
        "direction": "horizontal",
        "symbolOpacity": 1,
    }
    color = alt.Color("what:N", scale=scale, legend=alt.Legend(**(options | legend)))
    return chart.transform_calculate(what=json.dumps(name)).encode(color=color)


def by_role(roles: Sequence[str], field: str = "role", **legend: Any) -> alt.Color:
    """Return the color channel by role, in the given order."""
    scale = alt.Scale(domain=[*roles], range=[ROLE_COLORS.get(role, GRAY) for role in roles])
    options: dict[str, Any] = {"orient": "top", "title": None, "columns": 4}
    return alt.Color(f"{field}:N", scale=scale, legend=alt.Legend(**(options | legend)))


def dashes(roles: Sequence[str], *, in_legend: bool = True) -> alt.StrokeDash:
    """Return the dash channel by role, merged into the legend of the colors unless that legend shows shapes."""
    scale = alt.Scale(domain=[*roles], range=[ROLE_DASHES.get(role, [1, 0]) for role in roles])
    legend = alt.Legend(orient="top", title=None, columns=4) if in_legend else None
    return alt.StrokeDash("role:N", scale=scale, legend=legend)


def shapes(roles: Sequence[str]) -> alt.Shape:
    """Return the shape channel by role, merged into the legend of the colors."""
    scale = alt.Scale(domain=[*roles], range=[ROLE_SHAPES.get(role, "circle") for role in roles])
    return alt.Shape("role:N", scale=scale, legend=alt.Legend(orient="top", title=None, columns=4))


def legend_selection(field: str) -> alt.Parameter:
    """Return a selection that a click on a legend entry makes (shift-click for several)."""
    return alt.selection_point(name=f"chosen_{field}", fields=[field], bind="legend")


def faded(chart: alt.Chart, chosen: alt.Parameter) -> alt.Chart:
    """Fade the marks of a layer that are not in the selection of the legend."""
    return chart.encode(opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.1)))


def zoomable(chart: alt.Chart, name: str, *encodings: Literal["x", "y"]) -> alt.Chart:
    """Let the wheel zoom a layer and the pointer drag it; a double click resets it. The name is unique within a figure."""
    return chart.add_params(
        alt.selection_interval(name=f"zoom_{name}", bind="scales", encodings=list(encodings or ("x",)))
    )


def log_ticks(bottom: float, top: float) -> list[float]:
    """Return the ticks 1, 3, 10, 30, ... within a logarithmic axis, or 1, 2, 5, 10, ... within a short one."""
    steps = (1.0, 3.0) if top > 20.0 * bottom else (1.0, 2.0, 5.0)
    exponents = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    ticks = [float(f"{step * 10.0**exponent:.3g}") for exponent in exponents for step in steps]
    return [tick for tick in ticks if bottom <= tick <= top]


def inline(rows: Sequence[Mapping[str, object]]) -> alt.InlineData:
    """Return rows as the data of a chart: numbers with five significant digits, without NaN and null.

    Long tables are stored as CSV. It is a third of the size, and altair, which copies the data at every step, copies one string.
    """
    if len(rows) <= _FEW:
        values = [{name: short(value) for name, value in row.items() if not _absent(value)} for row in rows]
        return alt.InlineData(values=values)
    names = list(dict.fromkeys(name for row in rows for name in row))
    numbers = [name for name in names if not any(isinstance(row.get(name), str) for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow("" if _absent(row.get(name)) else short(row[name]) for name in names)
    form = {"type": "csv", "parse": dict.fromkeys(numbers, "number")}
    return alt.InlineData(values=text.getvalue(), format=form)


def short(value: object, digits: int = 5) -> object:
    """Round a float to significant digits; return any other value unchanged."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def thinned(count: int, most: int = MAX_POINTS) -> list[int]:
    """Select at most `most` of `count` ranks: every rank at both ends, where spectra bend, and evenly spaced ranks between."""
    if count <= most:
        return list(range(count))
    ends = most // 6
    middle = most - 2 * ends
    step = (count - 2 * ends - 1) / (middle + 1)
    inner = {ends + round(step * (i + 0.5)) for i in range(middle)}
    return sorted({*range(ends), *inner, *range(count - ends, count)})
