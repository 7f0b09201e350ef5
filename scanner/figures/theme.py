"""Style of the figures: a palette safe for color blindness, themes for paper and screen, and compact inline data."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import altair as alt

from scanner.errors import ConfigError
from scanner.figures import sizing

Theme = Literal["paper", "screen", "dark"]
THEMES: tuple[Theme, ...] = get_args(Theme)
"""Sizes for print, sizes for a screen, and the latter on a dark background."""
FONTS = (4.0, 40.0)
"""Smallest and largest font size, in points."""

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
SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
"""Colors of what is neither a role nor a region, in their order."""
REGIONS = {"left": "below the bulk", "bulk": "bulk", "right": "above the bulk"}
"""Stored regions of the spectrum, from small to large singular values, and their names in prose."""
REGION_LABEL = f"({json.dumps(REGIONS)})[datum.label] || datum.label"
"""Vega expression of the label of a region in a legend."""

MAX_POINTS = 240
"""Maximal number of points of a line; more are not visible at paper size."""
_FEW = 12


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How a figure is asked to look; None is the default of the figure."""

    width: float | None = None
    """Width of the whole figure, in points."""
    height: float | None = None
    """Height of the whole figure, in points."""
    font_size: float | None = None
    """Size of the labels, in points."""
    theme: Theme | None = None

    @classmethod
    def of(
        cls, *, width: object = None, height: object = None, font_size: object = None, theme: object = None
    ) -> Appearance:
        """Return the appearance that a caller asks for.

        Raises:
            ConfigError: a length, the font size or the theme is not accepted.
        """
        if theme is not None and theme not in THEMES:
            raise ConfigError("theme", f"must be one of {', '.join(THEMES)}, got {theme!r}")
        if font_size is not None:
            known = isinstance(font_size, int | float) and not isinstance(font_size, bool)
            if not known or not FONTS[0] <= float(str(font_size)) <= FONTS[1]:
                raise ConfigError(
                    "font_size", f"must be a number of points from {FONTS[0]:g} to {FONTS[1]:g}, got {font_size!r}"
                )
        return cls(
            width=None if width is None else sizing.points("width", width),
            height=None if height is None else sizing.points("height", height),
            font_size=None if font_size is None else float(str(font_size)),
            theme=next((known for known in THEMES if known == theme), None),
        )


_WANTED: ContextVar[Appearance] = ContextVar("appearance")


@contextmanager
def wanted(appearance: Appearance) -> Iterator[None]:
    """Let `style` return sizes of this appearance: the functions of figures need not pass it on."""
    token = _WANTED.set(appearance)
    try:
        yield
    finally:
        _WANTED.reset(token)


@dataclass(frozen=True, kw_only=True)
class Style:
    """Sizes: in points for a column of a paper (3.4 inches are 245 points), in pixels for a screen."""

    width: float
    """Width of a view that is as wide as the figure."""
    height: float
    font: float
    line: float
    whole: float = 0.0
    """Width of the whole figure, which titles and legends may take up; 0: about that of the view with its axis."""

    @property
    def small(self) -> float:
        """Font size inside a plot."""
        return self.font - 1

    @property
    def total(self) -> float:
        """Width of the whole figure."""
        return self.whole or self.width + _MARGIN * self.font

    def across(self, panels: int, least: float = 12.5) -> int:
        """Return how many panels stand side by side, each at least `least` characters wide, in rows of about the same number."""
        most = max(1, min(panels, int(self.width // (least * self.font))))
        return -(-panels // -(-panels // most))

    def panel(self, across: int) -> float:
        """Return the width of the view of a panel."""
        return (self.width - (across - 1) * 2 * self.font) / across


PAPER = Style(width=200, height=120, font=7, line=1.0)
SCREEN = Style(width=520, height=300, font=13, line=1.8)
#: Width of axis and padding beside a view, in font sizes.
_MARGIN = 5.5
#: Colors of the theme `dark`, for those of the others.
_DARK = {
    BLACK: "#E8E8E8",
    GRAY: "#9A9DA5",
    PALE: "#4A4E57",
    BLUE: "#3B9BDC",
    "#EEEEEE": "#2C3038",
    "#444444": "#B5B8BF",
    "#332288": "#8D83E6",
    "#882255": "#D0699B",
    "#777777": "#9A9DA5",
    "white": "#15171C",
}


def style(interactive: bool) -> Style:
    """Return the sizes of a figure for the screen or for paper, in the appearance that was asked for."""
    asked = _WANTED.get(Appearance())
    on_screen = interactive if asked.theme is None else asked.theme != "paper"
    base = SCREEN if on_screen else PAPER
    look = base if asked.font_size is None else replace(base, font=asked.font_size)
    if asked.width is None:
        return look
    inner = max(asked.width - _MARGIN * look.font, 0.5 * asked.width)
    # Wider figures are less tall for their width: 180 mm are twice as wide as 85 mm and 1.5 times as tall.
    return replace(look, width=inner, height=base.height * math.sqrt(inner / base.width), whole=asked.width)


def finish(chart: Any, look: Style, title: str, subtitle: Sequence[str]) -> Any:
    """Return the chart with its title and the common configuration, as `Figure.draw` returns it.

    Lines of the title that are wider than the figure are broken.
    """
    inner = look.total - look.font  # of the padding on both sides
    lines = wrapped([title], inner, (look.font + 1) * 1.06)  # bold
    words = alt.TitleParams(
        lines[0] if len(lines) == 1 else lines,
        subtitle=wrapped(subtitle, inner, look.font),
        anchor="start",
        frame="bounds",
        offset=look.font,
    )
    return (
        # The lines as they are said, for those who read them as text.
        chart.properties(
            title=words, padding=look.font // 2, background="white", usermeta={"caption": [title, *subtitle]}
        )
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
        .configure_axisX(labelSeparation=0.25 * look.font)  # 10 11 is not 1011
        .configure_legend(
            labelFontSize=look.font,
            titleFontSize=look.font,
            titleFontWeight="normal",
            symbolSize=look.font * 7,
            symbolStrokeWidth=look.line * 1.4,
            labelLimit=look.total,
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


def dressed(chart: Any, theme: Theme | None) -> Any:
    """Return the chart in the colors of a theme."""
    if theme != "dark":
        return chart
    light = {"color": _DARK[BLACK]}
    specification = _recolored(chart.to_dict())
    config = specification.setdefault("config", {})
    for part in ("axis", "legend", "title", "header"):
        names = ("labelColor", "titleColor") if part != "title" else ("color",)
        config.setdefault(part, {}).update(dict.fromkeys(names, _DARK[BLACK]))
    for mark in ("rule", "text"):
        config[mark] = {**light, **config.get(mark, {})}
    return alt.Chart.from_dict(specification)


def _recolored(node: Any) -> Any:
    """Return a specification with the colors of the dark theme; its data are not touched."""
    if isinstance(node, dict):
        return {
            key: value if key in ("data", "datasets", "condition") else _recolored(value) for key, value in node.items()
        }
    if isinstance(node, list):
        return [_recolored(value) for value in node]
    return _DARK.get(node, node) if isinstance(node, str) else node


#: Widths of characters in units of the font size, of Liberation Sans (and Arial, whose metrics it has).
_NARROW, _WIDE = "iljtfrI.,:;'|!()[]/ -·′²", "mwMW@%→±"
_WIDTHS = {**dict.fromkeys(_NARROW, 0.3), **dict.fromkeys(_WIDE, 0.86)}


def text_width(text: str, font: float) -> float:
    """Return about the width of a text, in points."""
    return font * sum(_WIDTHS.get(char, 0.69 if char.isupper() else 0.555) for char in text)


def wrapped(lines: Sequence[str], width: float, font: float) -> list[str]:
    """Break lines at spaces so that none is wider than `width` points; a word that is wider is broken where it has to be."""
    found: list[str] = []
    for line in lines:
        current = ""
        for word in line.split(" "):
            longer = f"{current} {word}" if current else word
            if current and text_width(longer, font) > width:
                found.append(current)
                longer = word
            while text_width(longer, font) > width and len(longer) > 1:
                fits = max(
                    1, next(i for i in range(len(longer), 0, -1) if i == 1 or text_width(longer[:i], font) <= width)
                )
                found.append(longer[:fits])
                longer = longer[fits:]
            current = longer
        found.append(current)
    return found


def legend_columns(names: Sequence[str], look: Style) -> int:
    """Return how many columns a legend above the plot can have."""
    widest = max((text_width(name, look.font) for name in names), default=1.0) + 3.2 * look.font
    return max(1, min(len(names), int(look.total // widest)))


def named(chart: alt.Chart, name: str, colors: Mapping[str, str], look: Style, **legend: Any) -> alt.Chart:
    """Give a layer its name and color; all layers share one scale and one legend above the plot."""
    scale = alt.Scale(domain=[*colors], range=[*colors.values()])
    options: dict[str, Any] = {
        "orient": "top",
        "title": None,
        "symbolType": "stroke",
        "direction": "horizontal",
        "symbolOpacity": 1,
        "columns": legend_columns([*colors], look),
    }
    color = alt.Color("what:N", scale=scale, legend=alt.Legend(**(options | legend)))
    return chart.transform_calculate(what=json.dumps(name)).encode(color=color)


def by_role(roles: Sequence[str], look: Style, field: str = "role", **legend: Any) -> alt.Color:
    """Return the color channel by role, in the given order."""
    scale = alt.Scale(domain=[*roles], range=[role_color(role) for role in roles])
    options: dict[str, Any] = {"orient": "top", "title": None, "columns": legend_columns(roles, look)}
    return alt.Color(f"{field}:N", scale=scale, legend=alt.Legend(**(options | legend)))


def role_color(role: str) -> str:
    """Return the color of a role; gray for one that has none."""
    return ROLE_COLORS.get(role, GRAY)


def heading(text: str, look: Style, *, color: str = BLACK, subtitle: Sequence[str] = ()) -> alt.TitleParams:
    """Return the title of a panel."""
    return alt.TitleParams(
        text,
        subtitle=list(subtitle) or alt.Undefined,
        fontSize=look.font,
        subtitleFontSize=look.font,
        fontWeight="bold",
        color=color,
        offset=2,
        anchor="start",
        frame="group",
    )


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


TICK = "format(datum.value, datum.value == 0 || (abs(datum.value) >= 0.001 && abs(datum.value) < 10000) ? '~r' : '.0e')"
"""Vega expression of the label of a tick on an axis that spans orders of magnitude."""


def decades(bottom: float, top: float, most: int) -> list[float]:
    """Return powers of ten within a logarithmic axis, at most `most` of them; `log_ticks` if there are fewer than two."""
    exponents = range(math.ceil(math.log10(bottom)), math.floor(math.log10(top)) + 1)
    if len(exponents) < 2:
        return log_ticks(bottom, top)
    step = -(-len(exponents) // most)
    # From the largest down: where small values are few, the large ones have the labels.
    return [10.0**exponent for exponent in exponents[::-1][::step]][::-1]


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


def unbroken(deciles: Sequence[int]) -> dict[int, int]:
    """Return for each decile the first of those without a gap that it belongs to: a line over a gap would claim values there."""
    first: dict[int, int] = {}
    for decile in sorted({*deciles}):
        first[decile] = first.get(decile - 1, decile)
    return first


def thinned(count: int, most: int = MAX_POINTS) -> list[int]:
    """Select at most `most` of `count` ranks: every rank at both ends, where spectra bend, and evenly spaced ranks between."""
    if count <= most:
        return list(range(count))
    ends = most // 6
    middle = most - 2 * ends
    step = (count - 2 * ends - 1) / (middle + 1)
    inner = {ends + round(step * (i + 0.5)) for i in range(middle)}
    return sorted({*range(ends), *inner, *range(count - ends, count)})
