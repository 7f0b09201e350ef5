"""Figure of what deviations from independent entries consist of: row and column scale, head structure, direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from scanner.checkpoint.names import printable
from scanner.figures import theme
from scanner.figures.registry import figure
from scanner.figures.selection import caption, matrices, narrow, no_scale_null, one_stack, slices, whole
from scanner.store import Store

PARTS = ("small end", "middle", "large end")
SIDES = {"u": "left vectors (output side)", "v": "right vectors (input side)"}
COLORS = {"scale": theme.SKY, "head structure": theme.ORANGE, "direction": theme.VERMILION}
"""Parts of a deviation, in the order in which they are taken out of it."""
CHANCE = 2.0
"""Standard errors of random vectors that the gray bars extend to both sides."""
_RANDOM = f"± {CHANCE:g} standard errors of random vectors"


@figure(
    title="What the deviation from independent entries consists of: scale, head structure, direction",
    about="How far the mean p of the singular vectors lies below the 0.5 of random vectors, at the small end (the smallest tenth "
    "of the singular values), in the middle, and at the large end (the largest tenth). Scale is what unequal row and column "
    "variances explain, head structure what vectors that live in a few attention heads explain, direction what neither explains; "
    "the thick line is the sum. Gray is chance. Bars to the left: vectors closer to the Gaussian than chance, which orthogonality "
    "to the others does. All roles, or the layers of one role, or the heads of one role in one layer.",
)
def decompose(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    role: str | None = None,
    layer: int | None = None,
    stack: str | None = None,
) -> Any:
    """Draw the parts of 0.5 - p at both ends and in the middle of the spectrum as stacked bars, as query `decompose` has them.

    Without a role there is one bar for each role, with a role one for each layer, with a role and a layer one for each attention
    head. A thick line marks the sum of the parts, 0.5 - p.

    Raises:
        ScannerError: the model, role, layer or stack is unknown, or the matrices have no scale null.
    """
    heads = role is not None and layer is not None
    found = matrices(store, model, revision)
    found, stack_word = one_stack(slices(found) if heads else whole(found), stack)
    name, of_stack = found[0].model, found[0].stack
    found = narrow(found, name, role=role, layer=layer)
    answer = store.query("decompose", model=name, revision=revision, role=role, heads=heads, layers=role is not None)
    asked = [row for row in answer.to_pylist() if row["stack"] == of_stack and (layer is None or row["layer"] == layer)]
    rows = [_row(row, _bar(row, role, heads)) for row in asked]
    rows = [row for row in rows if row["bar"] is not None]
    if not rows:
        raise no_scale_null(found, f"the matrices of {printable(name)!r} have")
    look = theme.style(interactive)
    title = "Scale, head structure or direction"
    if role is not None:
        title += f": {role}" + (f", layer {layer}" if layer is not None else "")
    what = "head" if heads else "role" if role is None else "layer"
    named = caption(found, *([] if stack_word is None else [stack_word]))
    chart = _chart(rows, what, look, interactive=interactive)
    return theme.finish(chart, look, title, [named, f"0.5 − mean p and its parts; thick line: sum; gray: {_RANDOM}"])


def _bar(row: dict[str, Any], role: str | None, heads: bool) -> str | None:
    """Return the label of the bar that a row of the query belongs to; None for a matrix outside the blocks, among layers."""
    module = f" ({printable(str(row['module'])).replace('_', ' ')})" if row["module"] else ""
    if role is None:
        return f"{row['role']}{module}"
    number = row["head"] if heads else row["layer"]
    return None if number is None else f"{number}{module}"


def _row(row: dict[str, Any], bar: str | None) -> dict[str, Any]:
    parts = {"scale": row["scale"], "head structure": row["head_structure"], "direction": row["direction"]}
    place = {name: row[name] for name in ("part", "side", "vectors", "p", "p_scale", "p_within", "differs_by")}
    chance = CHANCE / (12 * row["vectors"]) ** 0.5
    return {"bar": bar, **place, **parts, "sum": 0.5 - row["p"], "chance": chance}


def _chart(rows: Sequence[dict[str, Any]], what: str, look: theme.Style, *, interactive: bool) -> Any:
    bars = list(dict.fromkeys(row["bar"] for row in rows))
    ends = [0.0]
    for row in rows:
        known = [row[name] for name in COLORS if row[name] is not None]
        ends += [sum(part for part in known if part > 0), sum(part for part in known if part < 0)]
        ends += [row["chance"], -row["chance"]]
    margin = 0.03 * (max(ends) - min(ends))
    domain = [min(ends) - margin, max(0.2, max(ends)) + margin]
    step = look.font * (1.5 if len(bars) <= 16 else 1.15)
    width = round((look.width * 1.1 - 2 * look.font) / len(PARTS))
    panels = []
    for number, side in enumerate(SIDES):
        across = [
            _panel(
                [row for row in rows if (row["side"], row["part"]) == (side, part)],
                bars,
                what,
                domain,
                look,
                name=f"{side}_{part.replace(' ', '_')}",
                heading=part if number == 0 else None,
                first=part == PARTS[0],
                last=number == len(SIDES) - 1,
                interactive=interactive,
            ).properties(width=width, height=round(step * len(bars)))
            for part in PARTS
        ]
        heading = alt.TitleParams(SIDES[side], fontSize=look.font, fontWeight="bold", anchor="start", offset=3)
        panels.append(alt.hconcat(*across, spacing=look.font, title=heading).resolve_scale(color="shared"))
    return alt.vconcat(*panels, spacing=round(0.7 * look.font)).resolve_scale(color="shared")


def _panel(
    rows: Sequence[dict[str, Any]],
    bars: Sequence[str],
    what: str,
    domain: list[float],
    look: theme.Style,
    *,
    name: str,
    heading: str | None,
    first: bool,
    last: bool,
    interactive: bool,
) -> Any:
    """Return the panel of one side and one part of the spectrum."""
    split = [
        {**row, "what": what, "value": row[what], "order": order}
        for row in rows
        for order, what in enumerate(COLORS)
        if row[what] is not None
    ]
    y_axis = alt.Axis(labels=first, ticks=False, domain=False, grid=False, labelOverlap=len(bars) > 40)
    y = alt.Y("bar:N", title=what if first else None, sort=bars, scale=alt.Scale(domain=bars), axis=y_axis)
    x_axis = alt.Axis(values=[-0.4, -0.2, 0, 0.2, 0.4], labels=last, format="~g", labelOverlap=False)
    x_title = "0.5 − p" if last else None
    shared: dict[str, Any] = {"title": x_title, "scale": alt.Scale(domain=domain, nice=False), "axis": x_axis}
    x = alt.X("value:Q", stack="zero", **shared)
    legend = alt.Legend(orient="top", title=None, direction="horizontal", symbolType="square")
    color = alt.Color("what:N", scale=alt.Scale(domain=[*COLORS], range=[*COLORS.values()]), legend=legend)
    base = alt.Chart(theme.inline(split), name=name)
    marks = base.mark_bar(clip=True, height={"band": 0.62}).encode(x=x, y=y, color=color, order="order:Q")
    once = alt.Chart(theme.inline(rows)).encode(y=y)
    chance = once.transform_calculate(low="-datum.chance").mark_bar(color=theme.PALE, height={"band": 0.95}, clip=True)
    zero = (
        alt.Chart(theme.inline([{"zero": 0}]))
        .mark_rule(strokeWidth=0.6 * look.line)
        .encode(x=alt.X("zero:Q", **shared))
    )
    # A thin line, since a dot would hide short bars.
    dots = once.mark_tick(color=theme.BLACK, thickness=1.3 * look.line, bandSize=1.15 * look.font, opacity=1, clip=True)
    dots = dots.encode(x=alt.X("sum:Q", **shared))
    if interactive:
        tips = [
            alt.Tooltip("bar:N", title=what),
            alt.Tooltip("sum:Q", title="0.5 − p", format=".3f"),
            *(alt.Tooltip(f"{part}:Q", format=".3f") for part in COLORS),
            alt.Tooltip("vectors:Q", title="vectors"),
            alt.Tooltip("chance:Q", title="2 standard errors", format=".3f"),
            alt.Tooltip("differs_by:N", title="differs by"),
        ]
        marks, dots = marks.encode(tooltip=tips), dots.encode(tooltip=tips)
    chart = alt.layer(chance.encode(x=alt.X("low:Q", **shared), x2="chance:Q"), marks, zero, dots)
    if heading is None:
        return chart
    return chart.properties(title=alt.TitleParams(heading, fontSize=look.font, fontWeight="normal", offset=2))
