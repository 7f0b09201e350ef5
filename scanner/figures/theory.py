"""Figure of the minimal model: the outlier of a linear student of a rank-1 teacher, in closed form and in samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import numpy as np

from scanner.errors import ScannerError
from scanner.figures import theme
from scanner.figures.registry import figure
from scanner.rmt.theory import MinimalModel, Outlier, measure, merging_betas
from scanner.store import Store

ALPHA, STRENGTH = 1.0, 0.2
ROWS, COLS = 512, 2048
"""Shape of the sampled matrices, as in the paper. The closed forms depend on the ratio only."""
DRAWS = 10
BETA = (0.2, 200.0)
"""Range of the x axis."""
SAMPLED = (0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 32.0, 100.0)
THEORY_U, THEORY_V = "with the teacher's u", "with the teacher's v"
VALUE, EDGE = "smallest singular value", "lower edge of the bulk"


@figure(
    title="Minimal model: the small outlier that a rank-1 teacher produces",
    about="Smallest singular value, and overlaps of its vectors with those of the teacher, against the strength of training: "
    "closed forms, and samples with error bars. Does not need a store.",
    parameters={"draws": f"number of sampled matrices for each strength (default: {DRAWS})"},
)
def theory(
    store: Store | None = None,
    *,
    interactive: bool = False,
    draws: int = DRAWS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Any:
    """Draw the outlier of the minimal model against the strength of training: closed forms as lines, samples with error bars.

    The upper panel shows the smallest singular value, the lower panel the overlaps of its singular vectors with those of the
    teacher. Error bars are the standard deviation of one draw, over the draws. On the left of the dashed rule there is no
    outlier: the smallest value belongs to the bulk, and its vectors have random overlaps. The store is not read.

    Source: arXiv 2410.17770v3, sec. 6 and Fig. 7.

    Raises:
        ScannerError: fewer than two draws, which have no standard deviation.
    """
    if draws < 2:
        raise ScannerError(f"`draws` must be at least 2, got {draws}: one draw has no standard deviation")
    look = theme.style(interactive)
    interval = merging_betas(alpha=ALPHA, strength=STRENGTH, q=ROWS / COLS)
    assert interval is not None, "the model has an outlier at these parameters"
    merge = interval[0]
    drawn: dict[float, list[Outlier]] = {}
    total = len(SAMPLED) * draws
    for number, beta in enumerate(SAMPLED):
        drawn[beta] = []
        for seed in range(draws):
            progress(number * draws + seed, total)
            drawn[beta].append(measure(_model(beta).sample(seed)))
    progress(total, total)
    lower = MinimalModel(alpha=ALPHA, strength=STRENGTH, beta=merge, rows=ROWS, cols=COLS).edges[0]
    value = _panel(
        look,
        {VALUE: theme.VERMILION, EDGE: theme.GRAY},
        _curve(merge, lower),
        [_point(beta, VALUE, [one.singular_value for one in found]) for beta, found in drawn.items()],
        merge,
        "smallest ν",
        [0.0, 0.6],
        interactive,
        last=False,
    )
    overlaps = _panel(
        look,
        {THEORY_V: theme.BLUE, THEORY_U: theme.ORANGE},
        _overlap_curves(merge),
        [
            _point(beta, what, values)
            for beta, found in drawn.items()
            for what, values in (
                (THEORY_V, [one.overlap_v for one in found]),
                (THEORY_U, [one.overlap_u for one in found]),
            )
        ],
        merge,
        "overlap",
        [0.0, 1.0],
        interactive,
        last=True,
    )
    chart = alt.vconcat(value, overlaps).resolve_scale(color="independent")
    details = f"lines: closed forms; points: {draws} draws of {ROWS} × {COLS}, ± one standard deviation"
    return theme.finish(chart, look, f"Minimal model, α = {ALPHA:g}, λ = {STRENGTH:g}", [details])


def _model(beta: float) -> MinimalModel:
    return MinimalModel(alpha=ALPHA, beta=beta, strength=STRENGTH, rows=ROWS, cols=COLS)


def _grid(merge: float) -> list[float]:
    """Return betas from the merging point on, dense near it, where the overlaps rise like a square root."""
    return [merge * (1.0 + (BETA[1] / merge - 1.0) * x**4) for x in np.linspace(0.0, 1.0, 120).tolist()]


def _curve(merge: float, lower: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [{"beta": beta, "value": lower, "what": EDGE} for beta in BETA]
    for beta in _grid(merge):
        outlier = _model(beta).outlier()
        rows.append({"beta": beta, "value": outlier.singular_value if outlier else lower, "what": VALUE})
    return rows


def _overlap_curves(merge: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for beta in _grid(merge):
        outlier = _model(beta).outlier()
        rows.append({"beta": beta, "value": outlier.overlap_v if outlier else 0.0, "what": THEORY_V})
        rows.append({"beta": beta, "value": outlier.overlap_u if outlier else 0.0, "what": THEORY_U})
    return rows


def _point(beta: float, what: str, values: Sequence[float]) -> dict[str, object]:
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    return {"beta": beta, "what": what, "value": mean, "low": mean - deviation, "high": mean + deviation}


def _panel(
    look: theme.Style,
    colors: dict[str, str],
    curves: list[dict[str, object]],
    points: list[dict[str, object]],
    merge: float,
    title: str,
    domain: list[float],
    interactive: bool,
    *,
    last: bool,
) -> Any:
    x_axis = alt.Axis(values=[0.1, 1, 10, 100], grid=False, format="~g")
    x = alt.X("beta:Q", title="strength of training β" if last else None, axis=x_axis)
    x = x.scale(type="log", domain=list(BETA), nice=False)
    space = 0.03 * (domain[1] - domain[0])  # points at the ends lie within the frame
    y_scale = alt.Scale(domain=[domain[0] - space, domain[1] + space], nice=False)
    y = alt.Y("value:Q", title=title, scale=y_scale, axis=alt.Axis(tickCount=5))
    legend = alt.Legend(orient="top", title=None, symbolType="stroke", direction="horizontal", labelLimit=look.width)
    color = alt.Color("what:N", scale=alt.Scale(domain=[*colors], range=[*colors.values()]), legend=legend)
    hover = [alt.Tooltip(f"{name}:Q", format=".4g") for name in ("beta", "value", "low", "high")]
    lines = alt.Chart(theme.inline(curves)).mark_line(clip=True, strokeWidth=1.3 * look.line)
    bars = alt.Chart(theme.inline(points)).mark_rule(clip=True, strokeWidth=look.line)
    dots = alt.Chart(theme.inline(points)).mark_point(filled=True, size=2.5 * look.font, opacity=1.0)
    rule = alt.Chart(theme.inline([{"beta": merge}])).mark_rule(
        strokeDash=[3, 2], strokeWidth=0.8 * look.line, color=theme.BLACK
    )
    note = {"beta": merge, "value": domain[1], "note": f"outlier for β ≥ {merge:.3g}"}
    layers: list[Any] = [
        rule.encode(x=x),
        lines.encode(x=x, y=y, color=color),
        bars.encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=color),
        dots.encode(x=x, y=y, color=color, tooltip=hover if interactive else alt.Undefined),
    ]
    if not last:
        text = alt.Chart(theme.inline([note])).mark_text(align="left", baseline="top", dx=3, dy=2, fontSize=look.small)
        layers.append(text.encode(x=x, y=y, text="note:N"))
    return alt.layer(*layers).properties(width=look.width, height=0.8 * look.height)
