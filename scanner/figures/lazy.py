"""Figure of rich and lazy networks with some of their singular values removed."""

from __future__ import annotations

from typing import Any

import altair as alt

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures import theme
from scanner.figures.registry import figure, nearest
from scanner.store import Store

_ASIDE = 0.8
"""Distance of the points of two regimes, in percent of the axis."""
_PANELS = {
    "smallest": "the smallest removed, % of their number",
    "mass": "the smallest removed, % of the sum of all",
    "random": "the same number removed at random, %",
}


@figure(
    title="Rich and lazy networks with some of their singular values removed",
    about="Accuracy against the share of removed singular values. A rich network does not need its small singular values; a lazy "
    "network uses all of them. Needs a run of `rmtscan lazy-learning`.",
)
def lazy(store: Store, *, interactive: bool = False, model: str | None = None, run: str | None = None) -> Any:
    """Draw the accuracy against the share of removed singular values, by regime: by number, by mass, and at random as a control.

    Lines are means over seeds, error bars the standard deviation of the change over seeds (none for a single seed). If the
    networks were trained by several recipes, those of the newest are drawn.

    Source: arXiv 2410.17770v1, App. A, Fig. 9.

    Args:
        store: store with the rows of the experiment.
        interactive: whether to draw for a screen.
        model: the network, if there are several: `mlp 64-512-512-512-10`.
        run: a recipe instead of the newest, from column `recipe` of query `lazy_learning`.

    Raises:
        ScannerError: the store has no such experiment, or none with this network or recipe; or there are too many regimes.
    """
    answer = store.query("lazy_learning").to_pylist()
    if not answer:
        raise ScannerError(f"{store.url} holds no lazy-learning experiment: run 'rmtscan lazy-learning'")
    known = list(dict.fromkeys(row["recipe"] for row in answer))
    if run is not None and run not in known:
        raise ScannerError(
            f"unknown recipe {printable(run)!r} (see column recipe of query lazy_learning): {nearest(run, known)}"
        )
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in answer:
        if run not in (None, row["recipe"]):
            continue
        groups.setdefault(f"{str(row['model']).rsplit(' alpha=', 1)[0]} on {row['dataset']}", []).append(row)
    fitting = [name for name in groups if model is None or model == name or name.startswith(f"{model} on ")]
    if len(fitting) != 1:
        there = [printable(name) for name in groups]
        if model:
            raise ScannerError(f"no network {printable(model)!r}: {nearest(printable(model), there)}")
        raise ScannerError(f"the store has several networks; give `model`, one of: {', '.join(there)}")
    found = groups[fitting[0]]
    newest = max(found, key=lambda row: (row["finished_at"], row["recipe"]))
    others = len({row["recipe"] for row in found}) - 1
    found = [row for row in found if row["recipe"] == newest["recipe"]]
    rows = []
    for row in found:
        regime = f"α = {str(row['model']).rsplit('alpha=', 1)[-1]}".replace(" frozen=", ", frozen ")
        spread = row["spread"] or 0.0
        value = {
            "regime": printable(regime),
            "ordering": row["ordering"],
            "percent": row["percent"],
            "value": row["value"],
        }
        rows.append(value | {"low": row["value"] - spread, "high": row["value"] + spread, "networks": row["networks"]})
        rows.append(value | {"percent": 0.0, "value": row["baseline"], "low": row["baseline"], "high": row["baseline"]})
    rows = list({(row["regime"], row["ordering"], row["percent"]): row for row in rows}.values())
    regimes = list(dict.fromkeys(str(row["regime"]) for row in rows))
    # Regimes stand side by side, so that no error bar hides another.
    aside = {regime: _ASIDE * (i - 0.5 * (len(regimes) - 1)) for i, regime in enumerate(regimes)}
    rows = [row | {"at": row["percent"] + aside[row["regime"]]} for row in rows]
    if len(regimes) > len(theme.SERIES):
        raise ScannerError(
            f"{len(regimes)} regimes, but only {len(theme.SERIES)} colors: use a store with fewer regimes"
        )
    look = theme.style(interactive)
    panels = [
        _panel(look, rows, regimes, ordering, title, interactive)
        for ordering, title in _PANELS.items()
        if any(row["ordering"] == ordering for row in rows)
    ]
    networks = sorted({int(row["networks"]) for row in found})
    counted = f"{networks[0]}" if len(networks) == 1 else f"{networks[0]} to {networks[-1]}"
    epochs = "1 epoch" if newest["epochs"] == 1 else f"{newest['epochs']} epochs"
    recipe = f"{epochs}, batches of {newest['batch']}, rate {newest['rate']:g}"
    recipe += "; every image normalized" if newest["normalize"] == "images" else ""
    recipe += f"; recipe {newest['recipe']}"
    recipe += f", the newest of {others + 1}" if others else ""
    details = f"{counted} seeds, ± one standard deviation of the change"
    chart = alt.vconcat(*panels).resolve_scale(color="shared")
    return theme.finish(chart, look, f"Rich and lazy networks: {printable(fitting[0])}", [recipe, details])


def _panel(
    look: theme.Style, rows: list[dict[str, Any]], regimes: list[str], ordering: str, title: str, interactive: bool
) -> Any:
    mine = sorted((row for row in rows if row["ordering"] == ordering), key=lambda row: (row["regime"], row["percent"]))
    data = theme.inline(mine)
    x = alt.X(
        "at:Q",
        title=title,
        scale=alt.Scale(domain=[-5, 105], nice=False),
        axis=alt.Axis(grid=False, values=[0, 20, 40, 60, 80, 100]),
    )
    y_scale = alt.Scale(domain=[-0.02, 1.02], nice=False)
    y = alt.Y("value:Q", title="accuracy", scale=y_scale, axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]))
    color = alt.Color(
        "regime:N",
        scale=alt.Scale(domain=regimes, range=[*theme.SERIES[: len(regimes)]]),
        legend=alt.Legend(orient="top", title=None, symbolType="stroke", direction="horizontal", labelLimit=look.width),
    )
    names = ("regime:N", "percent:Q", "value:Q", "low:Q", "high:Q")
    hover = [alt.Tooltip(name, format=".3g") if name.endswith("Q") else alt.Tooltip(name) for name in names]
    base = alt.Chart(data)
    bars = base.mark_rule(strokeWidth=look.line).encode(
        x=x, y=alt.Y("low:Q", title="accuracy"), y2="high:Q", color=color
    )
    lines = base.mark_line(strokeWidth=1.3 * look.line).encode(x=x, y=y, color=color)
    dots = base.mark_point(filled=True, size=2.0 * look.font, opacity=1.0).encode(
        x=x, y=y, color=color, tooltip=hover if interactive else alt.Undefined
    )
    return alt.layer(lines, bars, dots).properties(width=look.width, height=0.8 * look.height)
