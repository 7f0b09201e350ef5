"""Averages along the spectrum by role: figures of the singular values and of the p-values of singular vectors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
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
    rows_of,
    whole,
)
from scanner.rmt import marchenko_pastur
from scanner.store import Store

BINS = 64
"""Number of bins of the spectrum over which p is averaged, so that lines over thousands of ranks stay readable."""
_HISTOGRAM_BINS, _BEYOND = 60, 1.6
_FLOOR = 0.01
"""Lowest end of a logarithmic axis: the smallest singular values of square matrices go to zero."""


@figure(
    title="Mean spectra by role",
    about="Singular values by rank, averaged over the matrices of a role, in units of σ √max(m, n). The dotted line is the "
    "expectation for a random matrix of the same aspect ratio. Values above ν_max or below ν_min come from training.",
)
def spectra_by_role(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    role: str | None = None,
) -> Any:
    """Draw the singular values by rank, averaged over the matrices of a role, with the expectation of the Marchenko-Pastur law.

    Values are in units of sigma sqrt(max(rows, cols)); ranks are divided by the number of singular values. Each role (and shape)
    has a panel with a band of one standard deviation over its matrices. The axis is logarithmic, so that both ends of the spectrum
    are visible; a mark counts the values below it.

    Source: arXiv 2410.17770, v1 Figs. 2 and 10.

    Raises:
        ScannerError: the model or role is unknown, or no matrix has a bulk.
    """
    found = narrow(whole(matrices(store, model, revision)), model or "the model", role=role)
    name = found[0].model
    answer = store.query("spectrum_by_role", model=name, revision=revision, role=role).to_pylist()
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in answer:
        if row["singular_value"] is not None:
            groups[row["role"], row["rows"], row["cols"]].append(row)
    if not groups:
        raise ScannerError(f"no matrix of {printable(name)!r} has a bulk: sigma is zero everywhere")
    look = theme.style(interactive)
    chart, below = _spectra(groups, look, interactive=interactive)
    blocks = len(distinct(found, "layer"))
    details = [
        f"{len(found)} matrices, {blocks} blocks; band: ± one standard deviation over the matrices; dotted: random"
    ]
    details += ["▼: number of values below the axis"] if below else []
    return theme.finish(chart, look, "Mean spectra by role", [caption(found), *details])


def _spectra(
    groups: dict[tuple[str, int, int], list[dict[str, Any]]], look: theme.Style, *, interactive: bool
) -> tuple[Any, bool]:
    """Return a panel for each role and shape, on the same axes, and whether values lie below them."""
    values = [row["singular_value"] for line in groups.values() for row in line]
    # With the bands, and so that no label stands at the upper border, where it would move the heading of the panel.
    top = 1.25 * max(
        row["singular_value"] + (row["singular_value_std"] or 0.0) for line in groups.values() for row in line
    )
    bottom = max(_FLOOR, 0.8 * min(values))
    ticks = [
        tick for tick in theme.log_ticks(bottom, top / 1.1) if tick in (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    ]
    ticks = ticks if len(ticks) > 1 else theme.log_ticks(bottom, top / 1.1)
    y_scale = alt.Scale(type="log", domain=[bottom, top], nice=False)
    several = len({role for role, _, _ in groups}) < len(groups)
    across = look.across(len(groups))
    size = {"width": look.panel(across), "height": 0.6 * look.height}
    panels, below = [], False
    for i, ((role, m, n), line) in enumerate(groups.items()):
        first, last = i % across == 0, i >= len(groups) - across
        rows = [_point(line[k], k / len(line), bottom) | {"role": role} for k in theme.thinned(len(line), 160)]
        kept = [row for row in rows if row["s"] >= bottom]
        x_axis = alt.Axis(grid=False, values=[0, 0.5, 1], labels=last, format="~g")
        x_title = "relative rank k / min(m, n)" if last else None
        x = alt.X("x:Q", title=x_title, scale=alt.Scale(domain=[0, 1]), axis=x_axis)
        y_axis = alt.Axis(values=ticks, format="~g", grid=False, labels=first)
        y = alt.Y("s:Q", title="ν / (σ √max(m, n))" if first else None, scale=y_scale, axis=y_axis)
        color = theme.role_color(role)
        base = alt.Chart(theme.inline(kept)).encode(x=x)
        band = base.mark_area(color=color, opacity=0.25).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q")
        mean = base.mark_line(color=color, strokeWidth=1.2 * look.line).encode(y=y)
        gamma = min(m, n) / max(m, n)
        quantiles = [row for row in _expected(gamma) if float(str(row["s"])) >= bottom]
        law = alt.Chart(theme.inline(quantiles))
        law = law.mark_line(color=theme.BLACK, strokeWidth=0.8 * look.line, strokeDash=[1, 1.5])
        layers: list[Any] = [*_edge_rules(gamma, look, bottom), band, mean, law.encode(x="x:Q", y="s:Q")]
        hidden = [row for row in line if row["singular_value"] < bottom]
        if hidden:
            below = True
            smallest = min(row["singular_value"] for row in hidden)
            note = {"x": 0.0, "s": bottom, "note": f"▼ {len(hidden)}, down to {smallest:.1g}"}
            text = alt.Chart(theme.inline([note])).mark_text(
                align="left", baseline="bottom", dx=3, dy=-2, fontSize=look.small
            )
            layers.append(text.encode(x="x:Q", y="s:Q", text="note:N"))
        if interactive:
            layers.append(theme.zoomable(_hover(base), f"spectra_{i}", "x", "y"))
        name = f"{role}, {m} × {n}" if several or look.width > 300 else role
        panels.append(alt.layer(*layers).properties(title=theme.heading(name, look, color=color), **size))
    return alt.concat(*panels, columns=across), below


def _point(row: dict[str, Any], x: float, bottom: float) -> dict[str, Any]:
    """Return a point of a line: the mean, and what lies one standard deviation from it, within the axis."""
    mean, std = row["singular_value"], row["singular_value_std"] or 0.0
    ends = {"low": max(mean - std, bottom), "high": max(mean + std, bottom)}
    return {"k": row["k"], "x": x, "s": mean, "std": std, "n": row["matrices"], **ends}


def _hover(base: alt.Chart) -> Any:
    """Return invisible points that carry the tooltips of the lines."""
    tips = [
        alt.Tooltip("role:N", title="role"),
        alt.Tooltip("n:Q", title="averaged over"),
        alt.Tooltip("k:Q", title="rank k"),
        alt.Tooltip("s:Q", title="ν / (σ √hi)", format=".4g"),
        alt.Tooltip("std:Q", title="standard deviation", format=".2g"),
    ]
    return base.mark_point(opacity=0, size=60, filled=True, clip=True).encode(y="s:Q", tooltip=tips)


def _expected(gamma: float, points: int = 240) -> list[dict[str, object]]:
    """Return the singular value that the Marchenko-Pastur law expects at a relative rank, in units of sigma sqrt(hi)."""
    low, high = marchenko_pastur.edges(gamma)
    x = low + (high - low) * 0.5 * (1.0 - np.cos(np.linspace(0.0, np.pi, points)))
    share = 1.0 - marchenko_pastur.cdf(x, gamma)
    return [{"x": float(a), "s": float(np.sqrt(b))} for a, b in zip(share, x, strict=True) if b > 0.0]


def _edge_rules(gamma: float, look: theme.Style, bottom: float) -> list[Any]:
    low, high = (float(np.sqrt(edge)) for edge in marchenko_pastur.edges(gamma))
    layers: list[Any] = []
    for at, name in ((high, "ν max"), (low, "ν min")):
        if at > bottom:
            # These corners are free: spectra fall from the upper left to the lower right.
            upper = name == "ν max"
            base = alt.Chart(theme.inline([{"s": at, "edge": name, "x": float(upper)}])).encode(y="s:Q")
            layers.append(base.mark_rule(strokeDash=[3, 2], strokeWidth=0.6 * look.line, color=theme.BLACK))
            where: dict[str, Any] = {"align": "right" if upper else "left", "baseline": "bottom" if upper else "top"}
            text = base.mark_text(dx=-3 if upper else 3, dy=-2 if upper else 2, fontSize=look.font, **where)
            layers.append(text.encode(x="x:Q", text="edge:N"))
    return layers


@figure(
    title="Averaged histograms of the singular values by role, on one axis in absolute units",
    about="Density of the singular values of all matrices of a role together, not divided by σ, so that roles can be compared in "
    "size, a panel for each role. Crosses mark the mean edges of the Marchenko-Pastur law; the axis ends where nearly all values "
    "are below, and a note says how many are beyond.",
)
def histograms_by_role(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    role: str | None = None,
    stack: str | None = None,
) -> Any:
    """Draw the density of the singular values of all matrices of each role, averaged over the blocks, on one axis.

    Values are as they are, not in units of sigma; each matrix has the weight of its number of singular values.

    Source: arXiv 2410.17770, v1 Figs. 2 and 10.

    Raises:
        ScannerError: the model, role or stack is unknown, or every singular value is zero.
    """
    found, word = one_stack(in_blocks(whole(matrices(store, model, revision))), stack)
    name = found[0].model
    found = narrow(found, name, role=role)
    # The axis ends beyond the largest edge, which a few much larger values must not compress.
    shown = _BEYOND * max(matrix.mp_upper for matrix in found)
    if not shown > 0.0:
        raise ScannerError(f"the matrices of {printable(name)!r} have no bulk: sigma is zero everywhere")
    width = shown / _HISTOGRAM_BINS
    counts = rows_of(
        store,
        "role_histograms",
        model=name,
        revision=revision,
        stack=found[0].stack,
        role=role,
        width=width,
        bins=_HISTOGRAM_BINS,
    )
    roles = distinct(found, "role")
    look = theme.style(interactive)
    rows = _outlines(counts, width)
    chart = _histogram_panels(rows, counts, found, roles, shown, look, interactive=interactive)
    blocks = len(distinct(found, "layer"))
    details = [f"{blocks} blocks; crosses: mean edges of the Marchenko–Pastur law"]
    details += ["→: number of values beyond the axis"] if any(row["bin"] == _HISTOGRAM_BINS for row in counts) else []
    words = [] if word is None else [word]
    return theme.finish(chart, look, "Averaged histograms", [caption(found, *words), *details])


def _histogram_panels(
    rows: Sequence[dict[str, Any]],
    counts: Sequence[dict[str, Any]],
    found: Sequence[Matrix],
    roles: Sequence[str],
    shown: float,
    look: theme.Style,
    *,
    interactive: bool,
) -> Any:
    """Return a panel for each role, one below the other on one axis, so that no outline hides another."""
    scale = alt.Scale(domain=[0, shown], nice=False)
    panels = []
    for i, role in enumerate(roles):
        last = i == len(roles) - 1
        mine = [row for row in rows if row["role"] == role]
        highest = max(row["density"] for row in mine)
        of_role = [matrix for matrix in found if matrix.role == role]
        edges = [
            {"role": role, "nu": sum(values) / len(values), "density": 0.06 * highest}
            for values in ([m.mp_lower for m in of_role], [m.mp_upper for m in of_role])
            if sum(values) > 0.0
        ]
        x_axis = alt.Axis(grid=False, labels=last)
        x = alt.X("nu:Q", title="singular value ν" if last else None, scale=scale, axis=x_axis)
        y_scale = alt.Scale(domain=[0, 1.1 * highest], nice=False)
        middle = i == (len(roles) - 1) // 2
        y = alt.Y(
            "density:Q",
            title="density p(ν)" if middle else None,
            scale=y_scale,
            axis=alt.Axis(tickCount=2, grid=False),
        )
        color = theme.role_color(role)
        outline = alt.Chart(theme.inline(mine), name=f"histograms_{role}")
        # The outline begins and ends at zero, so that a filled line is the histogram.
        outline = outline.mark_line(
            color=color, fill=color, fillOpacity=0.35, strokeWidth=look.line, strokeJoin="miter"
        ).encode(x=x, y=y, order="order:Q")
        marks = alt.Chart(theme.inline(edges), name=f"edges_{role}").mark_point(
            shape="cross", filled=True, size=4 * look.font, opacity=1, color=theme.BLACK
        )
        marks = marks.encode(x=x, y=y)
        layers: list[Any] = [outline, marks]
        beyond = sum(row["counted"] for row in counts if row["role"] == role and row["bin"] == _HISTOGRAM_BINS)
        if beyond:
            note = {"nu": shown, "density": 0.35 * highest, "note": f"{beyond} →"}
            text = alt.Chart(theme.inline([note])).mark_text(align="right", dx=-2, fontSize=look.small)
            layers.append(text.encode(x=x, y=y, text="note:N"))
        if interactive:
            tips = [alt.Tooltip("role:N"), alt.Tooltip("nu:Q", title="edge", format=".4g")]
            layers[1] = marks.encode(tooltip=tips)
        title = theme.heading(role, look, color=color)
        panels.append(alt.layer(*layers).properties(width=look.width, height=0.28 * look.height, title=title))
    return alt.vconcat(*panels, spacing=0.6 * look.font)


def _outlines(counts: Sequence[dict[str, Any]], width: float) -> list[dict[str, Any]]:
    """Return the outlines of the histograms, from zero on; rows of statement `role_histograms`."""
    by_role: dict[str, dict[int, float]] = defaultdict(dict)
    for row in counts:
        by_role[row["role"]][row["bin"]] = row["counted"] / (row["total"] * width)
    rows = []
    for role, density in by_role.items():
        inside = [bin_ for bin_ in density if bin_ < _HISTOGRAM_BINS]
        corners = [(0.0, 0.0)]
        for at in range(max(inside, default=-1) + 1):
            corners += [(at * width, density.get(at, 0.0)), ((at + 1) * width, density.get(at, 0.0))]
        corners.append((corners[-1][0], 0.0))
        rows += [{"role": role, "nu": nu, "density": height, "order": i} for i, (nu, height) in enumerate(corners)]
    return rows


@figure(
    title="Randomness of the singular vectors along the spectrum, by role",
    about="p of the Kolmogorov-Smirnov test, averaged locally, from the largest singular values (left) to the smallest (right). "
    "Random vectors have a mean of 0.5; lower values differ from i.i.d. One block is drawn over the average of all.",
)
def pvalues_by_role(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    revision: str | None = None,
    layer: int | None = None,
    role: str | None = None,
    stack: str | None = None,
    side: str = "v",
) -> Any:
    """Draw locally averaged p-values along the spectrum, in one panel per role: one block over the average of all blocks.

    The band contains the middle 80 % of the blocks. Random vectors have a mean of 0.5, as the control shows.

    Source: arXiv 2410.17770, v1 Fig. 4.

    Raises:
        ScannerError: the model, role, layer or side is unknown.
    """
    check_side(side)
    found, word = one_stack(in_blocks(whole(matrices(store, model, revision))), stack)
    name = found[0].model
    found = narrow(found, name, role=role)
    layers = distinct(found, "layer")
    layer = layers[len(layers) // 2] if layer is None else layer
    narrow(found, name, layer=layer)
    rows = _profiles(store, found, revision=revision, layer=layer, role=role, side=side)
    if not rows:
        raise no_p_values(found)
    look = theme.style(interactive)
    roles = list(dict.fromkeys(row["role"] for row in rows))
    chart = _profile_panels(rows, roles, layer, look, interactive=interactive)
    details = f"{SIDES[side]} singular vectors ({side}), {len(layers)} blocks; band: middle 80 % of the blocks"
    words = [] if word is None else [word]
    return theme.finish(chart, look, "Randomness along the spectrum", [caption(found, *words), details])


def _profiles(
    store: Store, found: Sequence[Matrix], *, revision: str | None, layer: int, role: str | None, side: str
) -> list[dict[str, Any]]:
    rows = rows_of(
        store,
        "profiles",
        model=found[0].model,
        revision=revision,
        stack=found[0].stack,
        layer=layer,
        role=role,
        side=side,
        bins=min(BINS, *(matrix.count for matrix in found)),
    )
    return [row for row in rows if row["mean"] is not None]


def _profile_panels(
    rows: Sequence[dict[str, Any]], roles: Sequence[str], layer: int, look: theme.Style, *, interactive: bool
) -> Any:
    bins = 1 + max(row["bin"] for row in rows)
    named = {f"block {layer}": theme.VERMILION, "all blocks": theme.BLUE}
    controlled = any(row["control"] is not None for row in rows)
    named |= {"control": theme.GRAY} if controlled else {}
    data = [{**row, "x": (row["bin"] + 0.5) / bins} for row in rows]
    shown = [row[name] for row in rows for name in ("mean", "high", "block", "control") if row[name] is not None]
    domain = alt.Scale(domain=[0, max(0.75, 1.02 * max(shown))], nice=False)
    panels = []
    across = look.across(len(roles))
    width = look.panel(across)
    for i, role in enumerate(roles):
        mine = theme.inline(
            [{k: v for k, v in row.items() if k not in ("role", "bin")} for row in data if row["role"] == role]
        )
        last, first = i >= len(roles) - across, i % across == 0
        x_axis = alt.Axis(grid=False, values=[0, 0.5, 1], labels=last, format="~g")
        x = alt.X("x:Q", title="relative rank k / r" if last else None, scale=alt.Scale(domain=[0, 1]), axis=x_axis)
        y_axis = alt.Axis(values=[0, 0.5], labels=first, format=".1f", grid=False)
        title = "p, local mean" if first else None
        base = alt.Chart(mine).encode(x=x)
        y = alt.Y("mean:Q", title=title, scale=domain, axis=y_axis)
        band = base.mark_area(opacity=0.25, color=theme.BLUE, clip=True).encode(
            y=alt.Y("low:Q", title=title), y2="high:Q"
        )
        half = alt.Chart(theme.inline([{"half": 0.5}])).mark_rule(strokeDash=[3, 2], strokeWidth=0.6 * look.line)
        control = base.mark_line(strokeWidth=0.7 * look.line, clip=True).encode(y=alt.Y("control:Q", title=title))
        mean = base.mark_line(strokeWidth=1.2 * look.line, clip=True).encode(y=y)
        block = base.mark_line(strokeWidth=look.line, clip=True).encode(y=alt.Y("block:Q", title=title))
        layers = [
            band,
            half.encode(y="half:Q"),
            *([theme.named(control, "control", named, look)] if controlled else []),
            theme.named(mean, "all blocks", named, look),
            theme.named(block, f"block {layer}", named, look),
        ]
        if interactive:
            tips = [
                alt.Tooltip("x:Q", title="relative rank", format=".2f"),
                alt.Tooltip("mean:Q", title="all blocks", format=".3f"),
                alt.Tooltip("low:Q", title="10 % below", format=".3f"),
                alt.Tooltip("high:Q", title="10 % above", format=".3f"),
                alt.Tooltip("block:Q", title=f"block {layer}", format=".3f"),
                alt.Tooltip("control:Q", title="control", format=".3f"),
            ]
            points = base.mark_point(opacity=0, size=80, filled=True, clip=True).encode(y="mean:Q", tooltip=tips)
            layers.append(theme.zoomable(points, role))
        heading = theme.heading(role, look)
        panels.append(alt.layer(*layers).properties(width=width, height=0.45 * look.height, title=heading))
    return alt.concat(*panels, columns=across).resolve_scale(color="shared")
