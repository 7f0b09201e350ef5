"""What enters the matrices: overlap of singular vectors with the principal directions of the activations, and their spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures import theme
from scanner.figures.choice import rows_of
from scanner.figures.registry import nearest
from scanner.store import Store

REGIONS = {"left": theme.BLUE, "bulk": theme.GREY, "right": theme.VERMILION}
ADVICE = "'rmtscan activations REF --text FILE' measures them"


def one_run(found: list[dict[str, Any]], model: str | None, run: str | None, nothing: str) -> dict[str, Any]:
    """Of the runs found, newest first, the one that is meant: the one named, or the newest of the model.

    Raises:
        ScannerError: there is none, or several models and none was named.
    """
    if not found:
        raise ScannerError(nothing)
    models = _distinct(found, "model")
    if model is not None and model not in models:
        raise ScannerError(
            f"nothing is measured of {printable(model)!r}: {nearest(printable(model), map(printable, models))}"
        )
    if model is None and run is None and len(models) > 1:
        raise ScannerError(f"several models are measured, name one with --model: {', '.join(map(printable, models))}")
    kept = [row for row in found if model in (None, row["model"]) and run in (None, row["run_id"])]
    if not kept:
        raise ScannerError(f"there is no run {printable(str(run))!r}: {nearest(run, _distinct(found, 'run_id'))}")
    return kept[0]


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
    """O_k = max_j |v_k . f_j| of right singular vectors with the activations' principal directions, against the singular value.

    The points of all matrices of a role (or of one layer), coloured by region, one panel a role; the band is what random vectors
    have, 0.135 to 99.865 %, with its median. Below it M_k = max_i |v_k . e_i|, the same with the axes of the standard basis in the
    place of principal directions: where O_k leaves the band and M_k does not, the overlap is not that of a few single features.
    `centred`: the principal directions of the covariance, else of the second moments.

    Source: arXiv 2410.17770, v1 Figs. 5, 6 and 13 (not centred there), v3 Figs. 2-4 (centred), App. C (M_k).

    Raises:
        ScannerError: nothing is measured, or not of this model, role or layer.
    """
    runs = rows_of(store, "overlap_runs")
    chosen = one_run(runs, model, run, f"no overlaps in {store.url}: {ADVICE}")
    found = rows_of(store, "overlaps", model=chosen["model"], run=run, role=role, layer=layer, centred=centred)
    if not found:
        raise ScannerError(_nothing(chosen, role, layer))
    look = theme.style(interactive)
    band = store.query("overlap_vs_region", run=run, model=chosen["model"], centred=centred).to_pylist()
    used = {row.pop("run_id") for row in found}
    panels = []
    for name in _distinct(found, "role"):
        of_role = [row for row in found if row["role"] == name]
        widths = sorted({row["cols"] for row in of_role})
        for cols in widths:  # the band depends on it
            mine = [row for row in of_role if row["cols"] == cols]
            points = [mine[i] for i in theme.thinned(len(mine), 4 * theme.MAX_POINTS)]
            limits = next(row for row in band if (row["role"], row["cols"]) == (name, cols))
            title = name.replace("_", " ") + (f", {cols} inputs" if len(widths) > 1 else "")
            panels.append(_panel(title, points, limits, look, interactive))
    chart = alt.concat(*panels, columns=2 if len(panels) > 1 else 1)
    where = f"layer {layer}" if layer is not None else "all layers"
    return theme.finish(
        chart,
        look,
        "Overlap of singular vectors with the activations",
        [
            printable(chosen["model"]),
            f"{where}, {'centred covariance' if centred else 'second moments, not centred'}",
            _texts([row for row in runs if row["run_id"] in used]),
            "below: largest entry M_k (overlap with the standard basis)",
        ],
    )


def _texts(runs: list[dict[str, Any]]) -> str:
    """What was read in the runs that are drawn."""
    texts = sorted({printable(str(run["dataset"])) for run in runs if run["dataset"] is not None})
    tokens = sorted({run["tokens"] for run in runs if run["tokens"] is not None})
    if not tokens:
        return "a run that is not finished"
    count = f"{tokens[0]:,} tokens" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,} tokens"
    several = f", the newest of {len(runs)} runs for each matrix" if len(runs) > 1 else ""
    return f"{', '.join(texts)}: {count}{several}"


def _panel(
    title: str, points: list[dict[str, Any]], limits: dict[str, Any], look: theme.Style, interactive: bool
) -> Any:
    """O_k over M_k, of one role and width."""
    largest = max(row["singular_value"] for row in points)
    x_scale = alt.Scale(domain=[0, largest], nice=False)
    axis = alt.Axis(grid=False, tickCount=5)
    x = alt.X("singular_value:Q", title="singular value ν", scale=x_scale, axis=axis)
    x_above = alt.X("singular_value:Q", title=None, scale=x_scale, axis=alt.Axis(grid=False, tickCount=5, labels=False))
    upper = _against_band("overlap", "overlap O_k", x_above, points, limits, look, interactive)
    lower = _against_band("peak", "entry M_k", x, points, limits, look, interactive)
    return alt.vconcat(
        upper.properties(width=look.width, height=look.height),
        lower.properties(width=look.width, height=look.height // 2),
        spacing=look.font // 2,
        title=alt.TitleParams(title, anchor="middle"),
    )


def _against_band(
    column: str,
    title: str,
    x: alt.X,
    points: list[dict[str, Any]],
    limits: dict[str, Any],
    look: theme.Style,
    interactive: bool,
) -> Any:
    """A column's points over the band of random vectors."""
    top = 1.05 * max(limits["random_high"], *(row[column] for row in points))
    y_scale = alt.Scale(domain=[0, top], nice=False)
    area = alt.Chart(theme.inline([{"low": limits["random_low"], "high": limits["random_high"]}]))
    band = area.mark_rect(color=theme.PALE, opacity=0.7).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q")
    middle = alt.Chart(theme.inline([{"middle": limits["random_middle"]}])).mark_rule(strokeWidth=0.8 * look.line)
    hover = [alt.Tooltip(name, format=".4g") for name in ("singular_value:Q", "overlap:Q", "peak:Q", "eigenvalue:Q")]
    hover += [alt.Tooltip(name) for name in ("layer:O", "k:O", "match:O")]
    dots = alt.Chart(theme.inline(points)).mark_point(filled=True, size=4 * look.line, opacity=0.6)
    dots = dots.encode(
        x=x,
        y=alt.Y(f"{column}:Q", title=title, scale=y_scale, axis=alt.Axis(tickCount=4)),
        color=alt.Color(
            "region:N",
            scale=alt.Scale(domain=[*REGIONS], range=[*REGIONS.values()]),
            legend=alt.Legend(orient="top", title=None, direction="horizontal"),
        ),
        tooltip=hover if interactive else alt.Undefined,
    )
    return alt.layer(band, middle.encode(y="middle:Q"), dots)


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
    """Eigenvalues of the covariance of what enters the matrices, by index, geometric mean over the layers of a role.

    Source: arXiv 2410.17770v3, sec. 4.

    Raises:
        ScannerError: nothing is measured, or not of this model, role or layer.
    """
    chosen = one_run(rows_of(store, "overlap_runs"), model, run, f"no overlaps in {store.url}: {ADVICE}")
    found = rows_of(
        store, "activation_spectra", model=chosen["model"], run=run, role=role, layer=layer, centred=centred
    )
    if not found:
        raise ScannerError(_nothing(chosen, role, layer))
    look = theme.style(interactive)
    roles = _distinct(found, "role")
    points = []
    for name in roles:
        mine = [row for row in found if row["role"] == name]
        points += [mine[i] for i in theme.thinned(len(mine))]
    chart = alt.Chart(theme.inline(points)).mark_line(strokeWidth=look.line)
    chart = chart.encode(
        x=alt.X(
            "number:Q",
            title="index of the eigenvalue",
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(grid=False),
        ),
        y=alt.Y(
            "eigenvalue:Q", title="eigenvalue", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0e", tickCount=5)
        ),
        color=theme.by_role(roles),
        tooltip=["role:N", "number:O", alt.Tooltip("eigenvalue:Q", format=".4g")] if interactive else alt.Undefined,
    ).properties(width=look.width, height=look.height)
    what = "covariance of the activations, centred" if centred else "second moments of the activations, not centred"
    details = f"{what}; inputs that are shared give equal lines"
    return theme.finish(chart, look, "Spectrum of the activations", [printable(chosen["model"]), details])


def _nothing(chosen: dict[str, Any], role: str | None, layer: int | None) -> str:
    where = [f"role {printable(role)!r}"] if role is not None else []
    where += [f"layer {layer}"] if layer is not None else []
    of = f"{printable(chosen['model'])!r}{''.join(f', {one}' for one in where)}"
    return f"nothing is measured of {of}: 'rmtscan query overlap_by_role' lists the roles, table overlaps the layers"


def _distinct(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))
