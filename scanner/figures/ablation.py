"""Figures of the damage from removal: of sets of singular values (ablation), and of directions at the norms (slicing)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures import theme
from scanner.figures.activations import of_run, one_run
from scanner.figures.registry import figure, nearest
from scanner.figures.selection import rows_of
from scanner.store import Store

#: Some sets destroy a model: perplexities beyond this multiple of the baseline are drawn at the edge, with their value.
BEYOND = 1e6
#: Part of the largest damage below which the axis is linear.
_LINEAR = 1e-9
NAMES = {
    "perplexity": "increase of perplexity",
    "kl": "KL (nats per token)",
    "accuracy": "change of accuracy",
}
_METRICS = {"kl": "KL divergence"}
#: Kinds of sets that contain a share of the singular values: `smallest:10` is ten percent.
PRUNING = ("smallest", "most-random")
#: Kinds of sets in the order of the axis.
_KINDS = ("decile", "region", "range", *PRUNING)
#: Value of `layers` for a single block, with the stack if the model has several: `3`, `encoder:3`.
_ONE_BLOCK = re.compile(r"(?:[^: ]+:)?(\d+)")
#: Label of a set; regions are named by their position relative to the bulk.
_SET_LABEL = "({left: 'below', right: 'above'})[datum.label] || datum.label"


@figure(
    title="Damage from removing a tenth of the singular values",
    about="Damage by decile and role, with random sets of the same size, and the spectra. Needs a run of `rmtscan ablate`.",
)
def ablation(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    run: str | None = None,
    role: str | None = None,
    layer: int | None = None,
) -> Any:
    """Draw the damage by decile, a panel per role, with its standard error; random sets of the same size are hollow points.

    The lower panel shows the spectra, if all of the matrices are scanned. A run without deciles is drawn over its own sets:
    pruning against the removed percentage, with one line for each kind; regions and other sets in their order. A run that was
    measured by role and by layer is drawn by role; `layer` selects the points of a single block.

    Source: arXiv 2410.17770, v1 Figs. 7 and 11, v3 Fig. 5 with its inset (the spectra).

    Raises:
        ScannerError: the store has no such run, or the run has no point of this model, role or layer.
    """
    runs = rows_of(store, "point_runs", kind="ablation")
    chosen = one_run(runs, model, run, f"{store.url} holds no ablations: run 'rmtscan ablate REF --text FILE'")
    found = store.query("ablation_curve", run=chosen["run_id"]).to_pylist()
    asked = _asked_for(found, role, layer)
    if not asked:
        words = [f"role {printable(role)!r}"] if role is not None else []
        words += [f"layer {layer}"] if layer is not None else []
        there = dict.fromkeys(
            f"{_shortened(roles.split(','))} (layers {layers})" for roles, layers in map(_group, found)
        )
        raise ScannerError(
            f"run {chosen['run_id']} of {printable(chosen['model'])!r} has no point of {' in '.join(words)} ('rmtscan ablate' "
            f"measures roles, and single blocks by layer): {nearest(role, there)}"
        )
    deciles = [row for row in asked if row["set"].startswith("decile:")]
    drawn = _by_role(deciles or asked) if layer is None else deciles or asked
    names = _names(drawn)
    rows = [_row(row, names[_group(row)]) for row in drawn]
    look = theme.style(interactive)
    pruned = {row["kind"] for row in rows} <= {*PRUNING}
    if pruned and len(names) == 1:
        rows = [row | {"what": row["kind"]} for row in rows]
    x = _percent() if pruned else _in_order(rows)
    # A line connects regions or deciles, which follow one another along the spectrum, but no other sets.
    connected = pruned or {row["kind"] for row in rows} in ({"decile"}, {"region"})
    dashes = _dashes() if pruned and len(names) > 1 else alt.Undefined
    metric = str(found[0]["metric"])
    together = pruned and len(names) == 1
    chart = damage(rows, x, metric, look, interactive, connected=connected, dashes=dashes, together=together)
    values = rows_of(store, "decile_values", run=chosen["run_id"]) if deciles else []
    values = [row | {"what": names[_group(row)]} for row in values if _group(row) in names]
    if values:
        chart = alt.vconcat(chart, _spectra(values, _color(rows, look), look)).resolve_scale(color="independent")
    experiment = store.file_rows("experiments", chosen["run_id"], ["dataset", "tokens"])
    sets = sorted({row["random_sets"] for row in rows if row["random_sets"]})
    caption = [
        of_run(store, chosen),
        *measured(runs, chosen, metric, experiment, found[0]["baseline"]),
        *_matrices(rows),
        *([f"hollow: mean of {_counted(sets)} of the same size"] if sets else []),
        "bars: standard error",
        *beyond(rows),
    ]
    return theme.finish(chart, look, "Damage from removing singular values", caption)


def measured(
    runs: Sequence[dict[str, Any]],
    chosen: dict[str, Any],
    metric: str,
    experiment: Sequence[dict[str, Any]],
    baseline: float,
) -> list[str]:
    """Return the caption of a run: metric, text and baseline, and its id if the model has several runs (newest first).

    Args:
        runs: all runs of the kind.
        chosen: the one that is drawn.
        metric: what was measured.
        experiment: row of the run with `dataset` and `tokens`; empty if the run is unfinished.
        baseline: value of the intact model.
    """
    text, tokens = (experiment[0]["dataset"], experiment[0]["tokens"]) if experiment else (None, None)
    on = _METRICS.get(metric, metric) + ("" if text is None else f" on {printable(str(text))}")
    on += f", {tokens:,} tokens" if tokens else ""
    own = [row["run_id"] for row in runs if row["model"] == chosen["model"]]
    which = "the newest" if chosen["run_id"] == own[0] else "one"
    run = [f"run {printable(chosen['run_id'])}, {which} of {len(own)}"] if len(own) > 1 else []
    return [f"{on}, baseline {baseline:.4g}" if baseline else on, *run]


def _counted(sets: Sequence[int]) -> str:
    """Return the number of random sets in words."""
    if len(sets) > 1:
        return f"{sets[0]} to {sets[-1]} random sets"
    return "1 random set" if sets[0] == 1 else f"{sets[0]} random sets"


def _matrices(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the caption of the matrices: roles that the legend does not name, and blocks that all lines share."""
    unnamed: dict[str, dict[str, None]] = {}
    for row in rows:
        roles = row["roles"].replace(",", ", ")
        if roles not in row["what"]:
            unnamed.setdefault(roles, {})[row["what"]] = None
    every = {row["what"] for row in rows}
    lines = [f"{'roles' if {*names} == every else _shortened([*names])}: {roles}" for roles, names in unnamed.items()]
    where = {_where(row["layers"]) for row in rows}
    return lines + [one for one in where if len(where) == 1 and not any(one in row["what"] for row in rows)]


def beyond(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the caption of points that are drawn at the edge; empty if there are none."""
    there = any(
        max(row["delta"], row["random_delta"] or 0.0) > BEYOND * row["baseline"]
        for row in rows
        if row["metric"] == "perplexity"
    )
    return [f"▲: more than {BEYOND:.0e} times the baseline, with the increase"] if there else []


def _group(row: dict[str, Any]) -> tuple[str, str]:
    """Return the roles and blocks of the matrices of a point."""
    return row["roles"], row["layers"]


def _block(row: dict[str, Any]) -> int | None:
    """Return the block of a point, or None if the point covers several."""
    found = _ONE_BLOCK.fullmatch(row["layers"])
    return None if found is None else int(found[1])


def _asked_for(found: list[dict[str, Any]], role: str | None, layer: int | None) -> list[dict[str, Any]]:
    """Select the points of a role, preferably of that role alone, and of a block, preferably of several roles."""
    rows = [row for row in found if role is None or role in row["roles"].split(",")]
    rows = [row for row in rows if layer is None or _block(row) == layer]
    if role is not None:
        return [row for row in rows if row["roles"] == role] or rows
    return rows if layer is None else [row for row in rows if "," in row["roles"]] or rows


def _by_role(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select points over several blocks, and of roles without another line; else single roles in one block; else all."""
    if any(_block(row) is None for row in rows):
        lines = Counter(roles for roles, _ in set(map(_group, rows)))
        return [row for row in rows if _block(row) is None or ("," not in row["roles"] and lines[row["roles"]] == 1)]
    single = [row for row in rows if "," not in row["roles"]]
    one_block = len({row["layers"] for row in single}) == 1 and len({row["roles"] for row in single}) > 1
    return single if one_block else rows


def _names(rows: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Return the shortest unique name for the matrices of each line.

    Lines of several roles in one block, and lines that differ in the block only, are named by the block; others by the roles.
    """
    groups = list(dict.fromkeys(map(_group, rows)))
    same_roles = len(groups) > 1 and len({roles for roles, _ in groups}) == 1

    def forms(roles: str, layers: str) -> list[str]:
        by_block = _ONE_BLOCK.fullmatch(layers) is not None and ("," in roles or same_roles)
        what, where = _shortened(roles.split(",")), _where(layers)
        return [where if by_block else what, f"{what}, {where}", f"{roles.replace(',', ', ')}, {where}"]

    chosen: dict[tuple[str, str], str] = {}
    for i in (2, 1, 0):
        form = {group: forms(*group)[i] for group in groups}
        taken = Counter(form.values())
        chosen |= {group: name for group, name in form.items() if taken[name] == 1}
    return chosen


def _where(layers: str) -> str:
    return f"layer {layers}" if _ONE_BLOCK.fullmatch(layers) else f"layers {layers}"


def _shortened(names: Sequence[str]) -> str:
    """Join names; of more than three, only the first, the last and the number."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]} ({len(names)})"


def _row(row: dict[str, Any], what: str) -> dict[str, Any]:
    kind, _, value = row["set"].partition(":")
    label = value if kind in {"decile", "region", "range"} else row["set"]
    error = row["stderr"] or 0.0
    drawn: dict[str, Any] = {"what": what, "kind": kind, "label": label}
    drawn |= {"percent": int(value)} if kind in PRUNING else {}
    return row | drawn | {"low": row["delta"] - error, "high": row["delta"] + error}


def _in_order(rows: Sequence[dict[str, Any]]) -> alt.X:
    """Return the x axis of sets: deciles and ranges by number, regions from below to above the bulk."""

    def rank(row: dict[str, Any]) -> tuple[int, list[int], str]:
        kind, _, value = row["set"].partition(":")
        numbers = (
            [[*theme.REGIONS].index(value)]
            if value in theme.REGIONS
            else [int(one) for one in re.findall(r"\d+", value)]
        )
        return _KINDS.index(kind) if kind in _KINDS else len(_KINDS), numbers, kind

    if {row["kind"] for row in rows} == {"decile"}:
        return by_decile("decile (1:\u00a0smallest singular values)")
    order = list(dict.fromkeys(row["label"] for row in sorted(rows, key=rank)))
    return _ordinal(order, "singular values removed")


def by_decile(title: str) -> alt.X:
    """Return the x axis of deciles, with a position for deciles that were not measured."""
    return _ordinal([str(decile) for decile in range(1, 11)], title)


def _ordinal(order: list[str], title: str) -> alt.X:
    axis = alt.Axis(labelAngle=0, grid=False, labelExpr=_SET_LABEL)
    return alt.X("label:O", sort=order, scale=alt.Scale(domain=order), title=title, axis=axis)


def _percent() -> alt.X:
    return alt.X(
        "percent:Q", title="singular values removed, % of their number", axis=alt.Axis(grid=False, tickCount=5)
    )


def _dashes() -> alt.StrokeDash:
    """Return the dash channel by kind of pruning, if color stands for the matrices."""
    scale = alt.Scale(domain=[*PRUNING], range=[[1, 0], [4, 2]])
    return alt.StrokeDash("kind:N", scale=scale, legend=alt.Legend(orient="top", title=None))


def _color(rows: Sequence[dict[str, Any]], look: theme.Style, *, legend: bool = True) -> Any:
    names = list(dict.fromkeys(row["what"] for row in rows))
    if all(name in theme.ROLE_COLORS for name in names):
        color = theme.by_role(names, look, field="what")
    else:
        # An explicit domain keeps the order; sorted by name, layer 10 would come before layer 2.
        above = alt.Legend(orient="top", title=None, columns=theme.legend_columns(names, look))
        color = alt.Color("what:N", scale=alt.Scale(domain=names, range=[*theme.SERIES]), legend=above)
    return color if legend else color.legend(None)


def damage(
    rows: list[dict[str, Any]],
    x: alt.X,
    metric: str,
    look: theme.Style,
    interactive: bool,
    *,
    connected: bool = True,
    dashes: Any = alt.Undefined,
    together: bool = False,
) -> Any:
    """Return the damage (`delta`, from `low` to `high`), a panel for each `what`; random sets are hollow points.

    Damage spans orders of magnitude, so the axis of perplexity and KL divergence is logarithmic beyond a small linear part.
    What is beyond it is drawn as a triangle at the edge, with its value.

    Args:
        rows: points.
        x: the axis of the sets.
        metric: what was measured.
        look: sizes.
        interactive: whether to draw for a screen.
        connected: whether a line connects the points.
        dashes: channel of the dashes of the lines.
        together: one panel for all, with a legend.
    """
    cap = BEYOND * rows[0]["baseline"] if metric == "perplexity" else math.inf
    rows = [_capped(row, cap) | {"part": ""} for row in rows]
    for name in {row["what"] for row in rows}:
        mine = [row for row in rows if row["what"] == name and row["kind"] == "decile"]
        parts = theme.unbroken([int(row["label"]) for row in mine])
        for row in mine:
            row["part"] = str(parts[int(row["label"])])
    names = list(dict.fromkeys(row["what"] for row in rows))
    panels = len(names) > 1 and not together
    across = look.across(len(names), 13.5) if panels else 1
    width, height = (look.panel(across), 0.75 * look.height) if panels else (look.width, look.height)
    scale, ticks = (alt.Scale(), None) if metric not in ("perplexity", "kl") else _symlog(rows, height, look)
    title = NAMES.get(metric, f"change of accuracy, {metric}")
    data = theme.inline([{**row, "finished_at": None} for row in rows])
    hover: list[Any] = ["what:N", "set:N", "removed:Q"]
    hover += [alt.Tooltip(name, format=".4g") for name in ("value:Q", "delta:Q", "stderr:Q", "random_delta:Q")]
    beyond = any(row["value_beyond"] for row in rows)

    def view(i: int) -> Any:
        """Return the marks of a panel, with the names of the axes at the margin."""
        first, last = i % across == 0, not panels or i >= len(names) - across
        y_axis = alt.Axis(tickCount=5, labels=first)
        if ticks is not None:
            y_axis = alt.Axis(values=ticks, labelExpr=theme.TICK, labelOverlap=True, labels=first)
        y_title = title if first else None
        below = x.copy()
        below["title"] = theme.wrapped([x["title"]], width, look.font + 1) if last else None
        base = alt.Chart() if panels else alt.Chart(data)
        base = base.encode(x=below, color=_color(rows, look, legend=not panels))
        base = base.transform_filter(alt.FieldEqualPredicate(field="what", equal=names[i])) if panels else base
        y = alt.Y("drawn:Q", title=y_title, scale=scale, axis=y_axis)
        line = base.mark_line(strokeWidth=look.line).encode(y=y, strokeDash=dashes, detail="part:N")
        shapes = alt.Scale(domain=["within", "beyond"], range=["circle", "triangle-up"])
        dots = base.mark_point(filled=True, opacity=1.0, size=12 * look.line).encode(
            y=y, shape=alt.Shape("beyond:N", legend=None, scale=shapes), tooltip=hover if interactive else alt.Undefined
        )
        bars = base.mark_rule(strokeWidth=look.line).encode(
            y=alt.Y("low:Q", scale=scale, title=y_title, axis=y_axis), y2="high:Q"
        )
        random = base.mark_point(filled=False, size=14 * look.line, strokeWidth=0.8 * look.line).encode(
            y=alt.Y("random_drawn:Q", scale=scale, title=y_title, axis=y_axis),
            shape=alt.Shape("random_beyond:N", legend=None, scale=shapes),
        )
        layers: list[Any] = [bars, *([line] if connected else []), dots]
        if beyond:
            words = base.mark_text(baseline="top", dy=0.6 * look.font, fontSize=look.small)
            layers.append(words.encode(y=y, text="value_beyond:N"))
        return alt.layer(*layers, random).properties(width=width, height=height)

    if not panels:
        return view(0)
    views = [view(i).properties(title=theme.heading(name, look)) for i, name in enumerate(names)]
    return alt.concat(*views, columns=across, data=data)


def _capped(row: dict[str, Any], cap: float) -> dict[str, Any]:
    """Return the row with its drawn values, limited to the cap and to the lowest change that the metric allows."""
    beyond, random = row["delta"] > cap, row["random_delta"]
    bottom = -row["baseline"] if math.isfinite(cap) else -math.inf
    drawn: dict[str, Any] = {"drawn": min(row["delta"], cap), "beyond": "beyond" if beyond else "within"}
    drawn |= {"value_beyond": f"{row['delta']:.0e}" if beyond else None}
    drawn |= {"low": cap if beyond else max(row["low"], bottom), "high": min(row["high"], cap)}
    drawn |= {"random_drawn": None if random is None else min(random, cap)}
    return row | drawn | {"random_beyond": "beyond" if random is not None and random > cap else "within"}


def _symlog(rows: list[dict[str, Any]], height: float, look: theme.Style) -> tuple[Any, list[float]]:
    """Return a scale and ticks for damage that spans orders of magnitude and can be negative; all values lie within.

    Ticks whose labels would overlap in a view of this height are left out: 0 stays, then the larger ones.
    """
    points = [row[name] for row in rows for name in ("drawn", "random_drawn") if row[name] is not None]
    drawn = points + [row[name] for row in rows for name in ("low", "high") if math.isfinite(row[name])]
    largest = max(map(abs, drawn), default=1.0) or 1.0
    # Differences that are smaller than every standard error mean nothing, and need no space.
    errors = [row["stderr"] for row in rows if row.get("stderr")]
    smallest = min((abs(value) for value in points if value), default=largest)
    constant = max(smallest, 0.5 * min(errors, default=0.0), _LINEAR * largest)
    exponents = range(math.ceil(math.log10(constant)), math.floor(math.log10(max(largest, constant))) + 1)
    powers = [10.0**exponent for exponent in exponents if 10.0**exponent <= largest]
    ticks = [0.0, *(powers[:: 1 + len(powers) // 7] or theme.log_ticks(0.2 * largest, largest))]
    lowest = min(drawn)
    ticks += [-tick for tick in ticks[1:] if tick <= -lowest]
    floor, top = min(1.2 * lowest, -0.3 * constant), 1.5 * largest

    def place(value: float) -> float:
        return math.copysign(math.log1p(abs(value) / constant), value)

    unit = height / (place(top) - place(floor))
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda tick: (tick != 0.0, -abs(tick), -tick)):
        if all(abs(place(tick) - place(other)) * unit >= 1.2 * look.font for other in kept):
            kept.append(tick)
    return alt.Scale(type="symlog", constant=constant, domain=[floor, top], nice=False), sorted(kept)


def _spectra(values: list[dict[str, Any]], color: Any, look: theme.Style) -> Any:
    chart = alt.Chart(theme.inline(values)).mark_line(strokeWidth=look.line)
    return chart.encode(
        x=alt.X("decile:O", title="decile (1: smallest singular values)", axis=alt.Axis(labelAngle=0, grid=False)),
        y=alt.Y("singular_value:Q", title="mean ν", axis=alt.Axis(tickCount=3)),
        color=color,
    ).properties(width=look.width, height=look.height // 2)


@figure(
    title="Damage from removing a tenth of the directions of the signal at the norms",
    about="Damage by decile of the eigenvalues of the activation covariance, projected before and after the norms. Needs a run of "
    "`rmtscan slicing`.",
)
def slicing(store: Store, *, interactive: bool = False, model: str | None = None, run: str | None = None) -> Any:
    """Draw the damage by decile of the eigenvalues of the covariance, one line for each order of projection and norm.

    Source of the construction: arXiv 2410.17770v1, App. F.

    Raises:
        ScannerError: the store has no such run.
    """
    runs = rows_of(store, "point_runs", kind="slicing")
    nothing = f"{store.url} holds no slicing: run 'rmtscan slicing REF --text FILE'"
    chosen = one_run(runs, model, run, nothing)
    found = store.query("slicing", run=chosen["run_id"]).to_pylist()
    rows = [
        row
        | {
            "what": row["place"],
            "kind": "decile",
            "label": str(row["decile"]),
            "set": f"decile {row['decile']}",
            "low": row["delta"] - (row["stderr"] or 0.0),
            "high": row["delta"] + (row["stderr"] or 0.0),
            "random_delta": None,
        }
        for row in found
    ]
    look = theme.style(interactive)
    metric = str(found[0]["metric"])
    experiment = store.file_rows("experiments", chosen["run_id"], ["dataset", "tokens"])
    chart = damage(rows, by_decile("decile of eigenvalues (1:\u00a0smallest)"), metric, look, interactive)
    caption = [
        of_run(store, chosen),
        *measured(runs, chosen, metric, experiment, found[0]["baseline"]),
        "bars: standard error",
        *beyond(rows),
    ]
    title = "Damage from removing a tenth of the directions at the norms"
    return theme.finish(chart, look, title, caption)
