"""What a model loses without a tenth (or a region) of its singular values, beside random sets of the same size."""

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
from scanner.figures.activations import one_run
from scanner.figures.choice import rows_of
from scanner.figures.registry import nearest
from scanner.store import Store

#: Without some sets a model is destroyed; perplexities beyond so many times the baseline are drawn at the edge.
BEYOND = 1000
ADVICE = "'rmtscan ablate REF --text FILE' measures them"
NAMES = {"perplexity": "rise of perplexity", "kl": "KL divergence (nats a token)", "accuracy": "change of accuracy"}
ALL = "all roles"
#: What `layers` says of a single block, with its stack where the model has several: `3`, `encoder:3`.
_ONE_BLOCK = re.compile(r"(?:[^: ]+:)?(\d+)")
#: A tick by itself: an axis would give all of them one unit.
_TICK = "format(datum.value, abs(datum.value) < 10000 ? '~r' : '.0e')"


def ablation(
    store: Store,
    *,
    interactive: bool = False,
    model: str | None = None,
    run: str | None = None,
    role: str | None = None,
    layer: int | None = None,
) -> Any:
    """Damage by decile, one line a role with its standard error; hollow: random sets of the same size. Below, the spectra.

    A run without deciles is drawn over the sets it has (regions, ranges). A run that was measured by role and by layer is drawn by
    role; `layer` asks for the points of that block alone.

    Source: arXiv 2410.17770, v1 Figs. 7 and 11, v3 Fig. 5 with its inset (the spectra, where the model is scanned).

    Raises:
        ScannerError: nothing is measured, or not of this model, role or layer.
    """
    runs = rows_of(store, "point_runs", kind="ablation")
    chosen = one_run(runs, model, run, f"no ablations in {store.url}: {ADVICE}")
    found = store.query("ablation_curve", run=chosen["run_id"]).to_pylist()
    asked = _asked_for(found, role, layer)
    if not asked:
        words = [f"role {printable(role)!r}"] if role is not None else []
        words += [f"layer {layer}"] if layer is not None else []
        there = dict.fromkeys(f"{_what(roles)} (layers {layers})" for roles, layers in map(_group, found))
        raise ScannerError(
            f"run {chosen['run_id']} of {printable(chosen['model'])!r} has no point of {' in '.join(words)} ('rmtscan ablate' "
            f"measures roles, and --by layer blocks): {nearest(role, there)}"
        )
    deciles = [row for row in asked if row["set"].startswith("decile:")]
    drawn = _by_role(deciles or asked) if layer is None else deciles or asked
    names = _names(drawn)
    rows = [_row(row, names[_group(row)]) for row in drawn]
    look = theme.style(interactive)
    metric = str(found[0]["metric"])
    order = list(dict.fromkeys(row["label"] for row in rows))
    title = "decile (1: smallest singular values)" if deciles else "singular values removed"
    top = damage(rows, order, title, metric, look, interactive)
    details = f"baseline {found[0]['baseline']:.4g}; hollow: random sets of the same size; bars: standard error"
    chart = top
    values = rows_of(store, "decile_values", model=chosen["model"]) if deciles else []
    values = [row | {"what": row["role"]} for row in values if row["role"] in {one["what"] for one in rows}]
    if values:
        chart = alt.vconcat(top, _spectra(values, look))
    title = "What a model loses without some of its singular values"
    return theme.finish(chart, look, title, [printable(chosen["model"]), details, *beyond(rows)])


def beyond(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the caption says of points that are drawn at the edge; nothing where there are none."""
    there = any(row["metric"] == "perplexity" and row["delta"] > BEYOND * row["baseline"] for row in rows)
    return [f"▲: more than {BEYOND} times the baseline"] if there else []


def _group(row: dict[str, Any]) -> tuple[str, str]:
    """Which matrices a point is about: their roles and their blocks."""
    return row["roles"], row["layers"]


def _block(row: dict[str, Any]) -> int | None:
    """The one block that a point is about; None: several."""
    found = _ONE_BLOCK.fullmatch(row["layers"])
    return None if found is None else int(found[1])


def _asked_for(found: list[dict[str, Any]], role: str | None, layer: int | None) -> list[dict[str, Any]]:
    """The points of a role, those of it alone where there are some, and of a block, those of several roles where there are some."""
    rows = [row for row in found if role is None or role in row["roles"].split(",")]
    rows = [row for row in rows if layer is None or _block(row) == layer]
    if role is not None:
        return [row for row in rows if row["roles"] == role] or rows
    return rows if layer is None else [row for row in rows if "," in row["roles"]] or rows


def _by_role(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points over several blocks, and those of roles that have no other line; or of single roles in one block; or else all."""
    if any(_block(row) is None for row in rows):
        lines = Counter(roles for roles, _ in set(map(_group, rows)))
        return [row for row in rows if _block(row) is None or ("," not in row["roles"] and lines[row["roles"]] == 1)]
    single = [row for row in rows if "," not in row["roles"]]
    one_block = len({row["layers"] for row in single}) == 1 and len({row["roles"] for row in single}) > 1
    return single if one_block else rows


def _names(rows: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """A name for the matrices of each line: the shortest that no other line has.

    Many roles in one block go by the block, and so does one role that is the same in every line; all others go by the role.
    """
    groups = list(dict.fromkeys(map(_group, rows)))
    one_role = len(groups) > 1 and len({roles for roles, _ in groups}) == 1

    def forms(roles: str, layers: str) -> list[str]:
        one_block = _ONE_BLOCK.fullmatch(layers) is not None
        where = f"layer {layers}" if one_block else f"layers {layers}"
        short = where if one_block and ("," in roles or one_role) else _what(roles)
        return [short, f"{_what(roles)}, {where}", f"{roles.replace(',', ', ')}, {where}"]

    chosen: dict[tuple[str, str], str] = {}
    for i in (2, 1, 0):
        form = {group: forms(*group)[i] for group in groups}
        taken = Counter(form.values())
        chosen |= {group: name for group, name in form.items() if taken[name] == 1}
    return chosen


def _what(roles: str) -> str:
    return ALL if "," in roles else roles


def _row(row: dict[str, Any], what: str) -> dict[str, Any]:
    label = row["set"].removeprefix("decile:").removeprefix("region:").removeprefix("range:")
    error = row["stderr"] or 0.0
    return row | {"what": what, "label": label, "low": row["delta"] - error, "high": row["delta"] + error}


def _colour(names: Sequence[str]) -> Any:
    if all(name in theme.ROLE_COLOURS for name in names):
        return theme.by_role(names, field="what")
    return alt.Color("what:N", legend=alt.Legend(orient="top", title=None, columns=4))


def damage(
    rows: list[dict[str, Any]], order: list[str], title: str, metric: str, look: theme.Style, interactive: bool
) -> Any:
    """What is lost (`delta`, from `low` to `high`) by `label`, in this order; a line for each `what`, random sets hollow."""
    names = list(dict.fromkeys(row["what"] for row in rows))
    colour = _colour(names)
    cap = BEYOND * rows[0]["baseline"] if metric == "perplexity" else math.inf
    rows = [_capped(row, cap) for row in rows]
    scale, ticks = (alt.Scale(), None) if metric == "accuracy" else _symlog(rows, cap)
    x = alt.X("label:O", sort=order, title=title, axis=alt.Axis(labelAngle=0, grid=False))
    y_axis = alt.Axis(tickCount=5) if ticks is None else alt.Axis(values=ticks, labelExpr=_TICK, labelOverlap=False)
    data = theme.inline([{**row, "finished_at": None} for row in rows])
    hover: list[Any] = ["what:N", "set:N", "removed:Q"]
    hover += [alt.Tooltip(name, format=".4g") for name in ("value:Q", "delta:Q", "stderr:Q", "random_delta:Q")]
    base = alt.Chart(data).encode(x=x, color=colour)
    y = alt.Y("drawn:Q", title=NAMES[metric], scale=scale, axis=y_axis)
    line = base.mark_line(strokeWidth=look.line).encode(y=y)
    shape = alt.Shape(
        "beyond:N", legend=None, scale=alt.Scale(domain=["within", "beyond"], range=["circle", "triangle-up"])
    )
    dots = base.mark_point(filled=True, opacity=1.0, size=12 * look.line).encode(
        y=y, shape=shape, tooltip=hover if interactive else alt.Undefined
    )
    bars = base.mark_rule(strokeWidth=look.line).encode(
        y=alt.Y("low:Q", scale=scale, title=NAMES[metric], axis=y_axis), y2="high:Q"
    )
    random = base.mark_point(filled=False, size=14 * look.line, strokeWidth=0.8 * look.line).encode(
        y=alt.Y("random_drawn:Q", scale=scale, title=NAMES[metric], axis=y_axis)
    )
    return alt.layer(bars, line, dots, random).properties(width=look.width, height=look.height)


def _capped(row: dict[str, Any], cap: float) -> dict[str, Any]:
    """The row with what is drawn of it: nothing beyond the cap."""
    beyond = row["delta"] > cap
    drawn: dict[str, Any] = {"drawn": min(row["delta"], cap), "beyond": "beyond" if beyond else "within"}
    drawn |= {"low": cap if beyond else row["low"], "high": min(row["high"], cap)}
    return row | drawn | {"random_drawn": None if row["random_delta"] is None else min(row["random_delta"], cap)}


def _symlog(rows: list[dict[str, Any]], cap: float) -> tuple[Any, list[float]]:
    """Scale and ticks for damage that spans orders of magnitude, and is sometimes a gain."""
    largest = max((abs(row["drawn"]) for row in rows), default=1.0) or 1.0
    if math.isfinite(cap):
        constant = 1e-2 * cap / BEYOND  # a change of one per cent of the baseline is small
    else:
        smallest = min((abs(row["drawn"]) for row in rows if row["drawn"]), default=largest)
        constant = max(smallest, 1e-5 * largest)
    exponents = range(math.ceil(math.log10(constant)), math.floor(math.log10(max(largest, constant))) + 1)
    powers = [10.0**exponent for exponent in exponents]
    ticks = [0.0, *powers[:: 1 + len(powers) // 7]]
    lowest = min(row["drawn"] for row in rows)
    ticks += [-tick for tick in ticks[1:] if tick <= -lowest]
    floor = min(1.2 * lowest, -0.3 * constant)
    return alt.Scale(type="symlog", constant=constant, domain=[floor, 1.5 * largest], nice=False, clamp=True), ticks


def _spectra(values: list[dict[str, Any]], look: theme.Style) -> Any:
    names = list(dict.fromkeys(row["what"] for row in values))
    chart = alt.Chart(theme.inline(values)).mark_line(strokeWidth=look.line)
    return chart.encode(
        x=alt.X("decile:O", title="decile", axis=alt.Axis(labelAngle=0, grid=False)),
        y=alt.Y("singular_value:Q", title="mean ν", axis=alt.Axis(tickCount=3)),
        color=_colour(names),
    ).properties(width=look.width, height=look.height // 2)
