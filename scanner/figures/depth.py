"""Figures by layer: randomness of the singular vectors by role and by attention head, and outliers of the spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from scanner.checkpoint.names import printable
from scanner.figures import theme
from scanner.figures.registry import figure
from scanner.figures.selection import (
    SIDES,
    Matrix,
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


def _subtitle(model: str, stack: str | None, details: str) -> list[str]:
    return [printable(model) if stack is None else f"{printable(model)}, {stack}", details]


def _sides(side: str | None) -> str:
    return "left and right singular vectors" if side is None else f"{SIDES[check_side(side)]} singular vectors ({side})"


@figure(
    title="Randomness of the singular vectors by depth and role",
    about="Mean p of all singular vectors of a matrix, by block. Random matrices have 0.5; lower values differ more from "
    "i.i.d.",
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
            p = _mean([_p(matrix, side) for matrix in mine])
            if p is not None:
                rows.append({"role": one, "layer": layer, "p": p, "matrices": len(mine)})
    if not rows:
        raise no_p_values(found)
    look = theme.style(interactive)
    domain = alt.Scale(domain=[0, max(0.55, 1.05 * max(row["p"] for row in rows))], nice=False)
    x_axis = alt.Axis(grid=False, tickMinStep=1, format="d", tickCount=min(len(layers), 10))
    x = alt.X(
        "layer:Q",
        title="layer",
        axis=x_axis,
        scale=alt.Scale(domain=[min(layers) - 0.3, max(layers) + 0.3], nice=False),
    )
    y = alt.Y("p:Q", title="mean p", scale=domain, axis=alt.Axis(tickCount=5))
    lines = alt.Chart(theme.inline(rows), name="depth").mark_line(strokeWidth=look.line)
    lines = lines.encode(
        x=x,
        y=y,
        color=theme.by_role(roles, symbolStrokeWidth=0.8 * look.line),
        strokeDash=theme.dashes(roles, in_legend=False),
    )
    points = alt.Chart(theme.inline(rows)).mark_point(
        filled=True, size=look.font * (2.5 if len(layers) <= 16 else 1.2), opacity=1
    )
    points = points.encode(
        x=x, y=y, color=theme.by_role(roles, symbolStrokeWidth=0.8 * look.line), shape=theme.shapes(roles)
    )
    if interactive:
        tips = [
            alt.Tooltip("role:N", title="role"),
            alt.Tooltip("layer:Q", title="layer"),
            alt.Tooltip("p:Q", title="mean p", format=".3f"),
            alt.Tooltip("matrices:Q", title="matrices"),
        ]
        chosen = theme.legend_selection("role")
        lines = theme.faded(lines, chosen).add_params(chosen)
        points = theme.zoomable(theme.faded(points, chosen).encode(tooltip=tips), "depth", "x", "y")
    random = alt.Chart(theme.inline([{"p": 0.5, "text": "random", "layer": max(layers) + 0.3}]))
    rule = random.mark_rule(strokeDash=[3, 2], strokeWidth=0.8 * look.line).encode(y="p:Q")
    word = random.mark_text(align="right", baseline="bottom", dx=-2, dy=-1, fontSize=look.font)
    chart = alt.layer(rule, lines, points, word.encode(x="layer:Q", y="p:Q", text="text:N"))
    chart = chart.properties(width=look.width, height=look.height)
    return theme.finish(chart, look, "Randomness by depth", _subtitle(found[0].model, stack_word, words))


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
    across = 2 if len(roles) > 1 else 1
    width = round((look.width - (across - 1) * 2 * look.font) / across)
    cell = max(look.font * 0.55, min(look.font * 1.2, 12 * look.font / len(layers)))
    panels = []
    for i, one in enumerate(roles):
        last, first = i >= len(roles) - across, i % across == 0
        heading = alt.TitleParams(one, fontSize=look.font, anchor="start", offset=2, frame="group", fontWeight="bold")
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
    return theme.finish(chart, look, title, _subtitle(found[0].model, stack_word, words))


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
        dark = alt.condition(f"datum.percent > {0.45 * most}", alt.value("white"), alt.value("black"))
        text = base.mark_text(fontSize=look.small).encode(text="text:N", color=dark)
        words = alt.TitleParams(heading, fontSize=look.font, anchor="start", fontWeight="bold", offset=2, frame="group")
        size = {"width": round(cell * len(roles)), "height": round(1.35 * look.font * len(layers))}
        panels.append(alt.layer(rect, text).properties(title=words, **size))
    chart = alt.hconcat(*panels).resolve_scale(color="shared")
    kinds = ", ".join(distinct(found, "sigma_kind"))
    title = "Singular values outside the bulk"
    return theme.finish(
        chart,
        look,
        title,
        _subtitle(found[0].model, stack_word, f"number; σ: {kinds}; –: square, so nothing lies below the bulk"),
    )


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
