"""Figures by layer: randomness of the singular vectors by role and by attention head, and outliers of the spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from scanner.figures import theme
from scanner.figures.registry import figure
from scanner.figures.selection import (
    SIDES,
    Matrix,
    caption,
    check_side,
    distinct,
    in_blocks,
    matrices,
    narrow,
    no_p_values,
    one_stack,
    slices,
    whole,
)
from scanner.store import Store

#: Share of the color scale from which on white text is easier to read on it than black.
_DARK = 0.74


def _p(matrix: Matrix, side: str | None) -> float | None:
    """Return the mean p of one side, or of both."""
    wanted = (
        [matrix.v_p_mean] if side == "v" else [matrix.u_p_mean] if side == "u" else [matrix.u_p_mean, matrix.v_p_mean]
    )
    known = [p for p in wanted if p is not None]
    return sum(known) / len(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _stack(word: str | None) -> list[str]:
    return [] if word is None else [word]


def _sides(side: str | None) -> str:
    return "left and right singular vectors" if side is None else f"{SIDES[check_side(side)]} singular vectors ({side})"


@figure(
    title="Randomness of the singular vectors by depth and role",
    about="Mean p of all singular vectors of a matrix, by block, a panel for each role. Random matrices have 0.5; lower values "
    "differ more from i.i.d. Where a block has several matrices of a role, such as experts, bars are their range.",
)
def depth(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    role: str | None = None,
    stack: str | None = None,
    side: str | None = None,
) -> Any:
    """Draw the mean p of the singular vectors of a matrix, by block and role; random vectors have 0.5.

    Source: "Analyzing Llama-3 weights via RMT", the trend over layers.

    Raises:
        ScannerError: the model, role, stack or side is unknown.
    """
    words = _sides(side)
    found, stack_word = one_stack(in_blocks(whole(matrices(store, model, revision))), stack)
    found = narrow(found, found[0].model, role=role)
    roles, layers = distinct(found, "role"), distinct(found, "layer")
    rows = []
    for one in roles:
        for layer in layers:
            mine = [matrix for matrix in found if (matrix.role, matrix.layer) == (one, layer)]
            known = [p for matrix in mine if (p := _p(matrix, side)) is not None]
            if known:
                p = sum(known) / len(known)
                row = {"role": one, "layer": layer, "p": p, "low": min(known), "high": max(known)}
                rows.append(row | {"matrices": len(known)})
    if not rows:
        raise no_p_values(found)
    look = theme.style(interactive)
    chart = _depth_panels(rows, roles, layers, look, interactive=interactive)
    several = any(row["matrices"] > 1 for row in rows)
    details = [words + "; gray: the other roles" if len(roles) > 1 else words]
    details[0] += "; bars: range of the matrices of a block" if several else ""
    return theme.finish(chart, look, "Randomness by depth", [caption(found, *_stack(stack_word)), *details])


def _depth_panels(
    rows: Sequence[dict[str, Any]], roles: Sequence[str], layers: Sequence[int], look: theme.Style, *, interactive: bool
) -> Any:
    """Return one panel per role on the same axes, with the lines of the other roles in gray."""
    low = min(0.5, *(row["low"] for row in rows))
    high = max(0.5, *(row["high"] for row in rows))
    margin = 0.08 * max(high - low, 0.1)
    scale = alt.Scale(domain=[max(0.0, low - margin), min(1.0, high + margin)], nice=False)
    aside = max(0.4, 0.025 * (max(layers) - min(layers)))  # for half a point
    x_scale = alt.Scale(domain=[min(layers) - aside, max(layers) + aside], nice=False)
    across = look.across(len(roles))
    size = {"width": look.panel(across), "height": 0.5 * look.height}
    panels = []
    for i, role in enumerate(roles):
        first, last = i % across == 0, i >= len(roles) - across
        x_axis = alt.Axis(grid=False, tickMinStep=1, format="d", tickCount=min(len(layers), 6), labels=last)
        x = alt.X("layer:Q", title="layer" if last else None, axis=x_axis, scale=x_scale)
        y = alt.Y("p:Q", title="mean p" if first else None, scale=scale, axis=alt.Axis(tickCount=4, labels=first))
        others = [row for row in rows if row["role"] != role]
        mine = theme.inline([row for row in rows if row["role"] == role])
        context = alt.Chart(theme.inline(others)).mark_line(strokeWidth=0.5 * look.line, color=theme.PALE)
        base = alt.Chart(mine)
        color = theme.role_color(role)
        line = base.mark_line(strokeWidth=look.line, color=color).encode(x=x, y=y)
        points = base.mark_point(
            filled=True, size=look.font * (2.5 if len(layers) <= 16 else 1.0), opacity=1, color=color
        )
        points = points.encode(x=x, y=y).properties(name=f"depth_{i}")
        if interactive:
            tips = [
                alt.Tooltip("role:N", title="role"),
                alt.Tooltip("layer:Q", title="layer"),
                alt.Tooltip("p:Q", title="mean p", format=".3f"),
                alt.Tooltip("low:Q", title="lowest", format=".3f"),
                alt.Tooltip("high:Q", title="highest", format=".3f"),
                alt.Tooltip("matrices:Q", title="matrices"),
            ]
            points = theme.zoomable(points.encode(tooltip=tips), f"depth_{i}", "x", "y")
        half = alt.Chart(theme.inline([{"p": 0.5}])).mark_rule(strokeDash=[3, 2], strokeWidth=0.6 * look.line)
        spread = base.mark_rule(strokeWidth=0.8 * look.line, color=color).encode(x=x, y=alt.Y("low:Q"), y2="high:Q")
        parts: list[Any] = [half.encode(y=alt.Y("p:Q", scale=scale))]
        parts += [context.encode(x=x, y=y, detail="role:N")] if others else []
        parts += [spread] if any(row["matrices"] > 1 for row in rows if row["role"] == role) else []
        if first and i == 0:
            word = alt.Chart(theme.inline([{"p": 0.5, "text": "random", "layer": max(layers) + aside}]))
            word = word.mark_text(align="right", baseline="bottom", dx=-2, dy=-1, fontSize=look.small)
            parts.append(word.encode(x="layer:Q", y="p:Q", text="text:N"))
        panel = alt.layer(*parts, line, points).properties(title=theme.heading(role, look, color=color), **size)
        panels.append(panel)
    return alt.concat(*panels, columns=across)


@figure(
    title="Randomness of the singular vectors by attention head",
    about="Mean p of the singular vectors of the slice of each head, layer by head; darker cells mean that a head differs "
    "more from i.i.d. Needs a scan with --heads, or with --products: qk and ov are the products W_qᵀ W_k and W_o W_v of each head, "
    "which do not depend on the basis of its queries, keys and values.",
)
def heads(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    role: str | None = None,
    stack: str | None = None,
    side: str | None = None,
) -> Any:
    """Draw the mean p of the singular vectors of every attention head's slice: a grid of layers and heads for each role.

    Products of heads, with the roles qk and ov, are panels of their own.

    Source: "Analyzing Llama-3 weights via RMT", the analysis by heads.

    Raises:
        ScannerError: the heads are not scanned, or the model, role, stack or side is unknown.
    """
    words = _sides(side)
    found, stack_word = one_stack(in_blocks(slices(matrices(store, model, revision))), stack)
    found = narrow(found, found[0].model, role=role)
    roles, layers = distinct(found, "role"), sorted(distinct(found, "layer"))
    look = theme.style(interactive)
    count = 1 + max(matrix.head or 0 for matrix in found)
    values = {one: _grid([matrix for matrix in found if matrix.role == one], side) for one in roles}
    known = [p for rows in values.values() for row in rows for p in row["p"] if p is not None]
    if not known:
        raise no_p_values(found)
    highest = max(0.5, min(1.0, max(known)))
    scale = alt.Scale(scheme="viridis", domain=[0, highest])
    across = look.across(len(roles))
    width = round(look.panel(across))
    cell = max(look.font * 0.55, min(look.font * 1.2, 12 * look.font / len(layers)))
    panels = []
    for i, one in enumerate(roles):
        last, first = i >= len(roles) - across, i % across == 0
        heading = theme.heading(one, look)
        x_axis = alt.Axis(labelAngle=0, ticks=False, domain=False)
        x = alt.X(
            "head:O", title="head" if last else None, axis=x_axis, scale=alt.Scale(domain=[*range(_heads(found, one))])
        )
        y_axis = alt.Axis(ticks=False, domain=False, labels=first)
        y = alt.Y(
            "layer:O", title="layer" if first else None, axis=y_axis, sort="ascending", scale=alt.Scale(domain=layers)
        )
        legend = alt.Legend(
            orient="top",
            title="mean p",
            gradientLength=round(0.5 * look.width),
            titleOrient="left",
            values=[mark for mark in (0.0, 0.25, 0.5, 0.75, 1.0) if mark <= highest],  # random vectors have 0.5
            format=".2f",
        )
        grid = alt.Chart(alt.InlineData(values=values[one]), name=f"heads_{one}")
        # The data has one row per layer, which the chart flattens to heads: this keeps large grids small.
        grid = grid.transform_flatten(["p"]).transform_window(number="row_number()", groupby=["layer"])
        grid = grid.transform_calculate(head="datum.number - 1").transform_filter("isValid(datum.p)")
        grid = grid.mark_rect().encode(x=x, y=y, color=alt.Color("p:Q", scale=scale, legend=legend))
        if interactive:
            tips = [alt.Tooltip("layer:O"), alt.Tooltip("head:O"), alt.Tooltip("p:Q", title="mean p", format=".3f")]
            grid = grid.encode(tooltip=tips)
        panels.append(grid.properties(width=width, height=round(cell * len(layers)), title=heading))
    chart = alt.concat(*panels, columns=across).resolve_scale(color="shared")
    title = f"Randomness of {count} heads in {len(layers)} blocks"
    return theme.finish(chart, look, title, [caption(found, *_stack(stack_word)), words])


def _heads(found: Sequence[Matrix], role: str) -> int:
    return 1 + max(matrix.head or 0 for matrix in found if matrix.role == role)


def _grid(found: Sequence[Matrix], side: str | None) -> list[dict[str, Any]]:
    """Return one row per layer, with the p of its heads in order."""
    rows = []
    for layer in sorted(distinct(found, "layer")):
        mine = [matrix for matrix in found if matrix.layer == layer]
        by_head: dict[int, list[float | None]] = {}
        for matrix in mine:
            by_head.setdefault(matrix.head or 0, []).append(_p(matrix, side))
        p = [theme.short(_mean(by_head.get(head, [])), 4) for head in range(1 + max(by_head))]
        rows.append({"layer": layer, "p": p})
    return rows


@figure(
    title="Singular values outside the Marchenko-Pastur bulk, layer by role",
    about="Number of singular values below ν_min and above ν_max; the color is their share of all singular values. In square "
    "matrices no value can lie below the bulk, which begins at zero.",
)
def outliers(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    stack: str | None = None,
) -> Any:
    """Draw the number of singular values below and above the Marchenko-Pastur bulk, layer by role, with their share as color.

    Source: arXiv 2410.17770, v3, the table of outliers.

    Raises:
        ScannerError: the model or stack is unknown.
    """
    found, stack_word = one_stack(in_blocks(whole(matrices(store, model, revision))), stack)
    roles, layers = distinct(found, "role"), sorted(distinct(found, "layer"))
    look = theme.style(interactive)
    rows = _outlier_rows(found)
    digits = max(len(str(row["count"])) for row in rows)
    cell = look.font * max(1.9, 0.62 * digits + 0.5)
    none = any(row["text"] == "–" for row in rows)
    most = max([1.0, *(row["percent"] for row in rows if row["percent"] is not None)])
    scale = alt.Scale(scheme="blues", domain=[0, most])
    legend = alt.Legend(
        orient="top", title="percent of all", titleOrient="left", gradientLength=round(0.4 * look.width), tickCount=3
    )
    panels = []
    for side, heading in (("left", "below the bulk"), ("right", "above the bulk")):
        mine = [row for row in rows if row["side"] == side]
        x_axis = alt.Axis(
            orient="top", labelAngle=-60, ticks=False, domain=False, labelLimit=200, labelOverlap=False, title=None
        )
        x = alt.X("role:N", sort=roles, axis=x_axis, scale=alt.Scale(domain=roles))
        first = side == "left"
        y_axis = alt.Axis(ticks=False, domain=False, labels=first, labelOverlap=False)
        y = alt.Y("layer:O", title="layer" if first else None, axis=y_axis, scale=alt.Scale(domain=layers))
        base = alt.Chart(theme.inline(mine)).encode(x=x, y=y)
        tips = [
            alt.Tooltip("role:N"),
            alt.Tooltip("layer:O"),
            alt.Tooltip("count:Q", title=f"values {heading}"),
            alt.Tooltip("percent:Q", title="percent", format=".2f"),
            alt.Tooltip("matrices:Q", title="matrices"),
        ]
        color = alt.Color("percent:Q", scale=scale, legend=legend)
        rect = base.mark_rect(stroke="white", strokeWidth=0.5).encode(color=color)
        if interactive:
            rect = rect.encode(tooltip=tips)
        # White on the scheme has more contrast than black from here on, where both have 4.6.
        on_color = alt.when(f"datum.percent > {_DARK * most}").then(alt.value("white"))
        on_color = on_color.when("isValid(datum.percent)").then(alt.value("black"))
        dark = on_color.otherwise(alt.value(theme.BLACK))  # on the ground of the theme
        text = base.mark_text(fontSize=look.small).encode(text="text:N", color=dark)
        words = alt.TitleParams(heading, fontSize=look.font, anchor="start", fontWeight="bold", offset=2, frame="group")
        size = {"width": round(cell * len(roles)), "height": round(1.35 * look.font * len(layers))}
        panels.append(alt.layer(rect, text).properties(title=words, **size))
    chart = alt.hconcat(*panels).resolve_scale(color="shared")
    title = "Singular values outside the bulk"
    details = "number of singular values" + ("; –: square, so nothing lies below the bulk" if none else "")
    return theme.finish(chart, look, title, [caption(found, *_stack(stack_word)), details])


def _outlier_rows(found: Sequence[Matrix]) -> list[dict[str, Any]]:
    """Return one row per cell and side; several matrices of a cell (experts) are added up."""
    cells: dict[tuple[int | None, str], list[Matrix]] = {}
    for matrix in found:
        cells.setdefault((matrix.layer, matrix.role), []).append(matrix)
    rows = []
    for (layer, role), mine in cells.items():
        total = sum(matrix.count for matrix in mine)
        square = all(matrix.rows == matrix.cols for matrix in mine)
        for side in ("left", "right"):
            count = sum(getattr(matrix, f"outliers_{side}") or 0 for matrix in mine)
            none = side == "left" and square
            rows.append(
                {
                    "layer": layer,
                    "role": role,
                    "side": side,
                    "count": count,
                    "percent": None if none else 100.0 * count / total,
                    "matrices": len(mine),
                    "text": "–" if none else str(count),
                }
            )
    return rows
