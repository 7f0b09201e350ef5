"""Figures of the activations that enter the matrices: overlap with singular vectors, and spectra; choice of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures import theme
from scanner.figures.registry import figure, nearest
from scanner.figures.selection import rows_of, titled
from scanner.store import Store

_REGION_COLORS = {"left": theme.BLUE, "bulk": theme.GRAY, "right": theme.VERMILION}
#: Space between the points and the frame, as a share of the axis.
_SPACE = 0.03
_ADVICE = "run 'rmtscan activations REF --text FILE'"


def one_run(found: list[dict[str, Any]], model: str | None, run: str | None, nothing: str) -> dict[str, Any]:
    """Return the given run, or the newest run of the model.

    Args:
        found: rows of runs, the newest first.
        model: name of the model; None if the runs are of one model.
        run: id of the run; None for the newest.
        nothing: message of the error if there are no runs.

    Raises:
        ScannerError: there are no runs, the model or run is unknown, or the runs are of several models and none was given.
    """
    if not found:
        raise ScannerError(nothing)
    models = _distinct(found, "model")
    if model is not None and model not in models:
        raise ScannerError(
            f"the store has no run of {printable(model)!r}: {nearest(printable(model), map(printable, models))}"
        )
    if model is None and run is None and len(models) > 1:
        raise ScannerError(f"the runs are of several models; give `model`, one of: {', '.join(map(printable, models))}")
    kept = [row for row in found if model in (None, row["model"]) and run in (None, row["run_id"])]
    if not kept:
        raise ScannerError(f"unknown run {printable(str(run))!r}: {nearest(run, _distinct(found, 'run_id'))}")
    return kept[0]


def of_run(store: Store, chosen: dict[str, Any]) -> str:
    """Return the caption of a run: its model and revision."""
    rows = store.file_rows("experiments", chosen["run_id"], ["revision"])
    revision = rows[0]["revision"] if rows else None
    return titled(str(chosen["model"]), None if revision is None else str(revision))


@figure(
    title="Overlap of singular vectors with the principal directions of the activations",
    about="O_k by singular value, colored by region; the gray band is the range of random vectors. Outliers above the band carry "
    "what the model knows about its input. Needs a run of `rmtscan activations`.",
)
def activation_overlap(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    run: str | None = None,
    role: str | None = None,
    layer: int | None = None,
    centred: bool = True,
) -> Any:
    """Draw the overlap O_k = max_j |v_k . f_j| of right singular vectors with the principal directions of the activations.

    Each role has a panel with the points of all its matrices (or of one layer) against the singular value, colored by region. The
    band is the range of random vectors, 0.135 to 99.865 %, with its median. The lower part shows M_k = max_i |v_k . e_i|, the
    overlap with the standard basis: if O_k leaves the band and M_k does not, the overlap is not due to a few single features.
    With `centred` the principal directions are those of the covariance, otherwise of the second moments.

    Source: arXiv 2410.17770, v1 Figs. 5, 6 and 13 (not centered there), v3 Figs. 2-4 (centered), App. C (M_k).

    Raises:
        ScannerError: the store has no such run, or the run has no overlaps of this model, role or layer.
    """
    runs = rows_of(store, "overlap_runs")
    chosen = one_run(runs, model, run, f"{store.url} holds no overlaps: {_ADVICE}")
    found = rows_of(store, "overlaps", model=chosen["model"], run=run, role=role, layer=layer, centred=centred)
    if not found:
        raise ScannerError(_nothing(chosen, role, layer))
    look = theme.style(interactive)
    band = store.query("overlap_vs_region", run=run, model=chosen["model"], centred=centred).to_pylist()
    used = {row.pop("run_id") for row in found}
    panels, left_out = [], 0
    for name in _distinct(found, "role"):
        of_role = [row for row in found if row["role"] == name]
        widths = sorted({row["cols"] for row in of_role})
        for cols in widths:  # the band depends on the width
            mine = [row for row in of_role if row["cols"] == cols]
            limits = next(row for row in band if (row["role"], row["cols"]) == (name, cols))
            points = _points(mine, limits)
            left_out += len(mine) - len(points)
            title = name + (f", {cols} inputs" if len(widths) > 1 else "")
            panels.append((title, points, limits))
    across = look.across(len(panels))
    views = []
    for i, panel in enumerate(panels):
        first, last = i % across == 0, i >= len(panels) - across
        views.append(_panel(*panel, look, look.panel(across), first, last, interactive))
    chart = alt.concat(*views, columns=across)
    where = f"layer {layer}" if layer is not None else "all layers"
    return theme.finish(
        chart,
        look,
        "Overlap of singular vectors with the activations",
        [
            of_run(store, chosen),
            f"{where}, {'centered covariance' if centred else 'second moments, not centered'}",
            _texts([row for row in runs if row["run_id"] in used]),
            "gray: 99.7 % of random vectors, line: their median; lower part: largest entry M_k (overlap with the standard basis)",
            *(
                [f"{left_out:,} of {len(found):,} vectors, most of them within the band, are left out"]
                if left_out
                else []
            ),
        ],
    )


#: Points of a panel within the band of random vectors, and beyond it.
_WITHIN, _BEYOND = 300, 500


def _points(rows: list[dict[str, Any]], limits: dict[str, Any]) -> list[dict[str, Any]]:
    """Select vectors to draw: those beyond the band, whose number is small, and as many of the others as can be seen."""
    beyond = [i for i, row in enumerate(rows) if not limits["random_low"] <= row["overlap"] <= limits["random_high"]]
    within = sorted({*range(len(rows))} - {*beyond})
    chosen = [beyond[i] for i in theme.thinned(len(beyond), _BEYOND)]
    return [rows[i] for i in sorted(chosen + [within[i] for i in theme.thinned(len(within), _WITHIN)])]


def _texts(runs: list[dict[str, Any]], *, several: bool = True) -> str:
    """Return the caption of the texts that the drawn runs read; with `several`, these are runs of one model."""
    texts = sorted({printable(str(run["dataset"])) for run in runs if run["dataset"] is not None})
    tokens = sorted({run["tokens"] for run in runs if run["tokens"] is not None})
    if not tokens:
        return ", ".join(texts) or "an unfinished run"
    count = f"{tokens[0]:,} tokens" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,} tokens"
    newest = f", the newest of {len(runs)} runs for each matrix" if several and len(runs) > 1 else ""
    return f"{', '.join(texts)}: {count}{newest}"


def _panel(
    title: str,
    points: list[dict[str, Any]],
    limits: dict[str, Any],
    look: theme.Style,
    width: float,
    first: bool,
    last: bool,
    interactive: bool,
) -> Any:
    """Return the panel of O_k above M_k for one role and width, with the names of the axes at the margin of the figure."""
    largest = max(row["singular_value"] for row in points)
    # Points at the largest value lie within the frame.
    x_scale = alt.Scale(domain=[-_SPACE * largest, (1.0 + _SPACE) * largest], nice=False)
    axis = alt.Axis(grid=False, tickCount=5)
    x = alt.X("singular_value:Q", title="singular value ν" if last else None, scale=x_scale, axis=axis)
    x_above = alt.X("singular_value:Q", title=None, scale=x_scale, axis=alt.Axis(grid=False, tickCount=5, labels=False))
    names = ("overlap O_k", "entry M_k") if first else (None, None)
    upper = _against_band("overlap", names[0], x_above, points, limits, look, interactive)
    lower = _against_band("peak", names[1], x, points, limits, look, interactive)
    return alt.vconcat(
        upper.properties(width=width, height=0.5 * look.height),
        lower.properties(width=width, height=0.3 * look.height),
        spacing=look.font // 2,
        title=theme.heading(title, look),
    )


def _against_band(
    column: str,
    title: str | None,
    x: alt.X,
    points: list[dict[str, Any]],
    limits: dict[str, Any],
    look: theme.Style,
    interactive: bool,
) -> Any:
    """Return the points of a column over the band of random vectors."""
    top = 1.05 * max(limits["random_high"], *(row[column] for row in points))
    y_scale = alt.Scale(domain=[-_SPACE * top, top], nice=False)
    area = alt.Chart(theme.inline([{"low": limits["random_low"], "high": limits["random_high"]}]))
    band = area.mark_rect(color=theme.PALE, opacity=0.7).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q")
    middle = alt.Chart(theme.inline([{"middle": limits["random_middle"]}])).mark_rule(strokeWidth=0.8 * look.line)
    hover = [alt.Tooltip(name, format=".4g") for name in ("singular_value:Q", "overlap:Q", "peak:Q", "eigenvalue:Q")]
    hover += [alt.Tooltip(name) for name in ("layer:O", "k:O", "match:O")]
    dots = alt.Chart(theme.inline(points)).mark_point(filled=True, size=4 * look.line, opacity=0.75)
    dots = dots.encode(
        x=x,
        y=alt.Y(f"{column}:Q", title=title, scale=y_scale, axis=alt.Axis(tickCount=4)),
        color=alt.Color(
            "region:N",
            scale=alt.Scale(domain=[*_REGION_COLORS], range=[*_REGION_COLORS.values()]),
            legend=alt.Legend(orient="top", title=None, direction="horizontal", labelExpr=theme.REGION_LABEL),
        ),
        tooltip=hover if interactive else alt.Undefined,
    )
    return alt.layer(band, middle.encode(y="middle:Q"), dots)


@figure(
    title="Spectrum of the activations that enter the matrices",
    about="Eigenvalues of the covariance of the inputs of each matrix, by index, a panel for each role; roles with the same input "
    "share one. Needs a run of `rmtscan activations`.",
)
def activation_spectrum(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    run: str | None = None,
    role: str | None = None,
    layer: int | None = None,
    centred: bool = True,
) -> Any:
    """Draw the eigenvalues of the covariance of the inputs of the matrices: geometric mean over the layers of a role, by index.

    Bands hold the middle 80 % of the layers. Eigenvalues that are zero within rounding are counted in the caption.

    Source: arXiv 2410.17770v3, sec. 4.

    Raises:
        ScannerError: the store has no such run, or the run has no spectra of this model, role or layer.
    """
    runs = rows_of(store, "overlap_runs")
    chosen = one_run(runs, model, run, f"{store.url} holds no overlaps: {_ADVICE}")
    found = rows_of(
        store, "activation_spectra", model=chosen["model"], run=run, role=role, layer=layer, centred=centred
    )
    if not found:
        raise ScannerError(_nothing(chosen, role, layer))
    look = theme.style(interactive)
    groups = _same_lines(found)
    lines = {several: [row for row in found if row["role"] == name] for name, several in groups.items()}
    drawn = {several: [row for row in rows if row["eigenvalue"] is not None] for several, rows in lines.items()}
    if not any(drawn.values()):
        raise ScannerError(f"all eigenvalues of {printable(chosen['model'])!r} are zero: there is nothing to draw")
    colors = {several: theme.role_color(name) for name, several in groups.items()}
    chart = _spectrum_panels({several: rows for several, rows in drawn.items() if rows}, colors, look, interactive)
    what = "covariance of the activations, centered" if centred else "second moments of the activations, not centered"
    texts = _texts([row for row in runs if row["run_id"] == chosen["run_id"]])
    matrices = sorted({row["matrices"] for row in found})
    details = "geometric mean"
    if matrices[-1] > 1:
        counted = f"{matrices[0]}" if len(matrices) == 1 else f"{matrices[0]} to {matrices[-1]}"
        details += f" and middle 80 % (band) of {counted} matrices of a role"
    details += "; gray: the other roles" if len(drawn) > 1 else ""
    zeros = [
        f"{len(rows) - len(drawn[several])} of {len(rows)} ({several})"
        for several, rows in lines.items()
        if len(rows) > len(drawn[several])
    ]
    missing = [f"zero up to rounding, not drawn: {', '.join(zeros)}"] if zeros else []
    caption = [of_run(store, chosen), what, texts, details, *missing]
    return theme.finish(chart, look, "Spectrum of the activations", caption)


def _spectrum_panels(
    lines: dict[str, list[dict[str, Any]]], colors: dict[str, str], look: theme.Style, interactive: bool
) -> Any:
    """Return a panel for each line on the same axes, with its band and the other lines in gray."""
    every = [row for rows in lines.values() for row in rows]
    most = max(row["number"] for row in every)
    bottom, top = min(row["low"] for row in every), max(row["high"] for row in every)
    x_scale = alt.Scale(type="log", domain=[1, most], nice=False)
    y_scale = alt.Scale(type="log", domain=[bottom / 1.5, top * 1.5], nice=False)
    across = look.across(len(lines))
    points = {several: [rows[i] for i in _bent(len(rows))] for several, rows in lines.items()}
    panels = []
    for i, (several, mine) in enumerate(points.items()):
        first, last = i % across == 0, i >= len(points) - across
        x_axis = alt.Axis(grid=False, values=theme.decades(1, most, 5), labelExpr=theme.TICK, labels=last)
        x = alt.X("number:Q", title="index of the eigenvalue" if last else None, scale=x_scale, axis=x_axis)
        y_axis = alt.Axis(values=theme.decades(bottom / 1.5, top * 1.5, 6), labelExpr=theme.TICK, labels=first)
        y = alt.Y("eigenvalue:Q", title="eigenvalue" if first else None, scale=y_scale, axis=y_axis)
        base = alt.Chart(theme.inline(mine))
        layers: list[Any] = []
        others = [row | {"line": name} for name, rows in points.items() if name != several for row in rows]
        if others:
            context = alt.Chart(
                theme.inline([{name: row[name] for name in ("line", "number", "eigenvalue")} for row in others])
            )
            pale = context.mark_line(strokeWidth=0.5 * look.line, color=theme.PALE)
            layers.append(pale.encode(x=x, y=y, detail="line:N"))
        if any(row["matrices"] > 1 for row in mine):
            band = base.mark_area(opacity=0.3, color=colors[several])
            layers.append(band.encode(x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q"))
        line = base.mark_line(strokeWidth=look.line, color=colors[several]).encode(x=x, y=y)
        if interactive:
            tips = [alt.Tooltip("number:Q", title="index")]
            tips += [alt.Tooltip(f"{name}:Q", format=".4g") for name in ("eigenvalue", "low", "high")]
            line = line.encode(tooltip=tips)
        panel = alt.layer(*layers, line).properties(width=look.panel(across), height=0.6 * look.height)
        panels.append(panel.properties(title=theme.heading(several, look, color=colors[several])))
    return alt.concat(*panels, columns=across)


def _bent(count: int) -> list[int]:
    """Select ranks of a curve on a logarithmic axis that bends at both ends: close together at the first and the last."""
    near = {round(count ** (i / 70)) - 1 for i in range(71)}
    return sorted(near | {count - 1 - rank for rank in near})


def _same_lines(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return the first of the roles that have the same values, because they have the same input, with the names of all."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in _distinct(found, "role"):
        values = tuple(theme.short(row["eigenvalue"], 6) for row in found if row["role"] == name)
        groups.setdefault(values, []).append(name)
    return {names[0]: ", ".join(names) for names in groups.values()}


#: Cells of a map along each side: more could not be seen in a column of a paper.
_CELLS = 72


@figure(
    title="Map of the overlaps of singular vectors with the principal directions of the activations",
    about="|v_k · f_j| of every singular vector with every principal direction, in units of random vectors: 1 is chance, a bright "
    "diagonal says that the matrix orders its inputs by their variance. Needs a run of `rmtscan activations` with --map.",
)
def overlap_map(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    run: str | None = None,
    role: str | None = None,
    layer: int | None = None,
    centred: bool = True,
) -> Any:
    """Draw the overlaps |v_k . f_j| of all right singular vectors of a matrix with all principal directions of the activations.

    A cell shows the root mean square of its overlaps times sqrt(n): 1 for random vectors, whatever the size of the cell.

    Source: arXiv 2410.17770v3, Fig. 15.

    Raises:
        ScannerError: no run has a map of this model, role and layer.
    """
    advice = "run 'rmtscan activations REF --text FILE --map ROLE:LAYER'"
    runs = rows_of(store, "overlap_map_models")
    chosen = one_run(runs, model, run, f"{store.url} holds no map of overlaps: {advice}")
    found = rows_of(
        store, "overlap_map", model=chosen["model"], run=run, role=role, layer=layer, centred=centred, bins=_CELLS
    )
    if not found:
        raise ScannerError(f"the store has no such map of {printable(chosen['model'])!r}: {advice}")
    look = theme.style(interactive)
    one = found[0]
    size = round(0.75 * look.width)
    x_axis, y_axis = alt.Axis(grid=False, tickCount=5), alt.Axis(grid=False, tickCount=5)
    drawn = ("k_first", "k_last", "j_first", "j_last", "overlap")
    cells = [{column: theme.short(row[column], 3) for column in drawn} for row in found]
    # Cells reach into the next ones, since seams would be visible between adjacent cells.
    wide, tall = one["vectors"] / _CELLS, one["cols"] / _CELLS
    chart = alt.Chart(theme.inline(cells)).transform_calculate(
        k_drawn=f"min(datum.k_last + {0.2 * wide:.4g}, {one['vectors']})",
        j_drawn=f"min(datum.j_last + {0.2 * tall:.4g}, {one['cols']})",
    )
    chart = (
        chart.mark_rect(clip=True, strokeWidth=0)
        .encode(
            x=alt.X(
                "k_first:Q",
                title="rank k of the singular value",
                axis=x_axis,
                scale=alt.Scale(domain=[0, one["vectors"]], nice=False),
            ),
            x2="k_drawn:Q",
            y=alt.Y(
                "j_first:Q",
                title="rank j of the principal direction",
                axis=y_axis,
                scale=alt.Scale(domain=[0, one["cols"]], nice=False, reverse=True),
            ),
            y2="j_drawn:Q",
            color=alt.Color(
                "overlap:Q",
                title="overlap √n (random: 1)",
                scale=alt.Scale(scheme="viridis", type="sqrt", domainMin=0),
                legend=alt.Legend(orient="top", gradientLength=size // 2, tickCount=4),
            ),
            tooltip=["k_first:Q", "j_first:Q", alt.Tooltip("overlap:Q", format=".3g")]
            if interactive
            else alt.Undefined,
        )
        .properties(width=size, height=size)
    )
    where = f"{one['role']}, layer {one['layer']}"
    what = "centered covariance" if centred else "second moments, not centered"
    text = next((row["dataset"] for row in runs if row["run_id"] == one["run_id"]), None)
    read = f"{one['tokens']:,} tokens" if text is None else f"{printable(str(text))}: {one['tokens']:,} tokens"
    caption = [of_run(store, chosen), f"{where}, {what}", read]
    return theme.finish(chart, look, "Overlaps with the activations", caption)


@figure(
    title="Overlap with the activations over the checkpoints of a training",
    about="Mean O_k of the large, middle and small tenths of the singular values, checkpoint by checkpoint; the gray band is "
    "the range of random vectors. Needs runs of `rmtscan activations` on several models, with the same text.",
    parameters={
        "models": "names of the checkpoints of a training with commas between them, in their order, instead of that of their steps"
    },
)
def overlap_training(
    store: Store,
    *,
    interactive: bool = False,
    models: str | None = None,
    role: str | None = None,
    layer: int | None = None,
    centred: bool = True,
) -> Any:
    """Draw the mean overlap O_k of three parts of the spectrum over the checkpoints of a training, a panel for each role.

    The checkpoints are models of the store, each with a run over the same text; the horizontal axis is their order.

    Source: arXiv 2410.17770v3, Fig. 10.

    Raises:
        ScannerError: fewer than two of these models have overlaps of this role and layer.
    """
    given = {"models": models, "role": role, "layer": layer, "centred": centred}
    found = store.query("overlap_training", **given).to_pylist()
    names = {row["place"]: row["model"] for row in found}
    if not names:
        raise ScannerError(f"{store.url} holds no overlaps of such checkpoints: {_ADVICE}")
    if len(names) < 2:
        raise ScannerError(
            f"{store.url} holds overlaps of one checkpoint, {printable(names[min(names)])!r}, and a curve needs two: "
            "run 'rmtscan activations' on each"
        )
    look = theme.style(interactive)
    runs = {row["model"]: row for row in rows_of(store, "overlap_runs")[::-1] if row["model"] in names.values()}
    labels, key = _labels(found, {model: of_run(store, row) for model, row in runs.items()})
    shapes = list(dict.fromkeys((row["role"], row["cols"]) for row in found))
    across = look.across(len(shapes))
    panels = []
    for i, (name, cols) in enumerate(shapes):
        mine = [
            row | {"label": labels[row["place"]], "low": _moved(row, -1.0), "high": _moved(row, 1.0)}
            for row in found
            if (row["role"], row["cols"]) == (name, cols)
        ]
        title = theme.heading(f"{name}, {cols} inputs", look)
        panel = _training_panel(
            mine, list(labels.values()), look, i % across == 0, i >= len(shapes) - across, interactive
        )
        panels.append(panel.properties(width=look.panel(across), height=0.6 * look.height, title=title))
    chart = alt.concat(*panels, columns=across)
    several = {row["texts"] for row in found} != {1}
    details = [f"{len(names)} checkpoints: {printable(names[min(names)])} to {printable(names[max(names)])}"]
    details = key or details
    details += ["their runs read different texts"] if several else [_texts([*runs.values()], several=False)]
    spread = any(row["spread"] is not None for row in found)
    details += ["gray: 99.7 % of random vectors" + ("; bars: standard deviation over matrices" if spread else "")]
    return theme.finish(chart, look, "Overlap with the activations over training", details)


def _moved(row: dict[str, Any], deviations: float) -> float:
    """Return the mean overlap, moved by a number of standard deviations over the matrices."""
    return float(row["overlap"] + deviations * (row["spread"] or 0.0))


def _training_panel(
    rows: list[dict[str, Any]], labels: list[str], look: theme.Style, first: bool, last: bool, interactive: bool
) -> Any:
    """Return the curves of one role and width over the band of random vectors; parts stand side by side."""
    ends = [row[name] for row in rows for name in ("low", "high", "random_low", "random_high")]
    margin = 0.06 * (max(ends) - min(ends))
    y_scale = alt.Scale(domain=[max(0.0, min(ends) - margin), max(ends) + margin], nice=False)
    x = alt.X(
        "label:O",
        title="checkpoint" if last else None,
        sort=labels,
        scale=alt.Scale(type="point", domain=labels, padding=0.5),
        axis=alt.Axis(grid=False, labelAngle=0, labelOverlap=True, labels=last),
    )
    y = alt.Y("overlap:Q", title="mean O_k" if first else None, scale=y_scale, axis=alt.Axis(tickCount=4))
    band = alt.Chart(theme.inline(rows[:1])).mark_rect(color=theme.PALE, opacity=0.7)
    layers: list[Any] = [band.encode(y=alt.Y("random_low:Q", scale=y_scale), y2="random_high:Q")]
    for i, part in enumerate(_PARTS):
        aside = (i - 0.5 * (len(_PARTS) - 1)) * 0.6 * look.font
        base = alt.Chart(theme.inline([row for row in rows if row["part"] == part]))
        tips = ["model:N", "part:N", alt.Tooltip("overlap:Q", format=".3f"), alt.Tooltip("spread:Q", format=".3f")]
        line = base.mark_line(strokeWidth=look.line, xOffset=aside).encode(x=x, y=y)
        dots = base.mark_point(filled=True, opacity=1, size=2.5 * look.font, xOffset=aside).encode(
            x=x, y=y, tooltip=tips if interactive else alt.Undefined
        )
        bars = base.mark_rule(strokeWidth=look.line, xOffset=aside).encode(
            x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q"
        )
        layers += [theme.named(layer, part, _PARTS, look) for layer in (bars, line, dots)]
    return alt.layer(*layers)


#: Checkpoints that the caption names.
_KEY = 6
_PARTS = {"large end": theme.VERMILION, "middle": theme.GRAY, "small end": theme.BLUE}


def _labels(found: list[dict[str, Any]], captions: dict[str, str]) -> tuple[dict[int, str], list[str]]:
    """Return short names of the checkpoints by place, in their order, and lines that explain them with their captions.

    The names are steps if all differ, otherwise the places, and a line for each says which model it is.
    """
    steps = {row["place"]: row["step"] for row in found}
    names = {row["place"]: captions[row["model"]] for row in found}
    places = sorted(names)
    if None not in steps.values() and len({*steps.values()}) == len(steps):
        return {place: str(steps[place]) for place in places}, []
    lines = [f"{place}: {names[place]}" for place in places]
    shown = lines if len(lines) <= _KEY else [*lines[: _KEY - 1], f"... {lines[-1]}"]
    return {place: str(place) for place in places}, shown


def _nothing(chosen: dict[str, Any], role: str | None, layer: int | None) -> str:
    where = [f"role {printable(role)!r}"] if role is not None else []
    where += [f"layer {layer}"] if layer is not None else []
    of = f"{printable(chosen['model'])!r}{''.join(f', {one}' for one in where)}"
    return f"the store has no overlaps of {of}: see 'rmtscan query overlap_by_role' for roles and table overlaps for layers"


def _distinct(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))
