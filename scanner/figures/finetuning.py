"""Figure of fine-tuning with a decile of the singular values, or of the activation directions, removed before or after it."""

from __future__ import annotations

from typing import Any

import altair as alt

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures import theme
from scanner.figures.activations import of_run
from scanner.figures.registry import figure, nearest
from scanner.store import Store

_ORDERS = {"remove-first": "removed, then fine-tuned", "tune-first": "fine-tuned, then removed"}
_NORMS = {"before norm": "directions before norms", "after norm": "directions after norms"}
_ASIDE = {"remove-first": -0.1, "tune-first": 0.1}
_COLORS = {"removed, then fine-tuned": theme.BLUE, "fine-tuned, then removed": theme.VERMILION}


@figure(
    title="Accuracy after fine-tuning with a decile of the singular values removed before or after it",
    about="Changes beyond the gray band (three standard deviations of the untouched runs, over seeds) are more than chance. "
    "Accuracy that is lost by removal after fine-tuning, but not by removal before it, was restored by training. Needs a run of "
    "`rmtscan finetune`.",
)
def finetuning(
    store: Store,
    *,
    interactive: bool = False,
    base: str | None = None,
    run: str | None = None,
    role: str | None = None,
) -> Any:
    """Draw the accuracy by removed decile in both orders, with the mean of the untouched runs and three standard deviations.

    Points are means over seeds, error bars their standard deviation (none for a single seed). The newest run of the base is drawn
    unless `run` is given; without a role, the newest points of the run, whatever was removed. `role` can also be `before norm` or
    `after norm`, for the directions of the activations that were projected out there.

    Source: arXiv 2410.17770, v1 Fig. 8 and App. F, v3 Fig. 6.

    Raises:
        ScannerError: the store has no fine-tuning, not of this run or base, or none with removal from this role.
    """
    answer = store.query("finetune_by_decile").to_pylist()
    if not answer:
        raise ScannerError(f"{store.url} holds no fine-tuning: run 'rmtscan finetune BASE --task FILE'")
    if run is not None:
        runs = sorted({str(row["run_id"]) for row in answer})
        answer = [row for row in answer if row["run_id"] == run]
        if not answer:
            raise ScannerError(f"unknown run {printable(run)!r}: {nearest(run, runs)}")
    bases = sorted({str(row["base_model"]) for row in answer})
    if base is None and len(bases) > 1:
        raise ScannerError(f"several models were fine-tuned; give `base`, one of: {', '.join(map(printable, bases))}")
    base = base or bases[0]
    if base not in bases:
        raise ScannerError(f"no model {printable(base)!r} was fine-tuned: {nearest(base, map(printable, bases))}")
    removed = [row for row in answer if row["base_model"] == base and row["order"] in _ORDERS]
    if not removed:
        raise ScannerError(
            f"no decile was removed in the fine-tuning of {printable(base)!r}: run 'rmtscan finetune' with --order"
        )
    known = sorted({str(row["roles"]) for row in removed})
    if role is not None and role not in known:
        raise ScannerError(f"no decile was removed from {printable(role)!r}: {nearest(role, known)}")
    newest = max((row for row in removed if role in (None, row["roles"])), key=lambda row: row["finished_at"])
    series = {"run_id": newest["run_id"], "roles": newest["roles"]}
    removed = [row for row in removed if series.items() <= row.items()]
    untouched = next((row for row in answer if row["run_id"] == newest["run_id"] and row["order"] == "none"), None)
    look = theme.style(interactive)
    what = _NORMS.get(newest["roles"])
    x = _decile("singular values" if what is None else "eigenvalues")
    chart = alt.layer(*_untouched(look, x, untouched), *_lines(look, x, removed, interactive))
    seeds = sorted({int(row["seeds"]) for row in removed})
    counted = "1 seed" if seeds == [1] else f"{'-'.join(map(str, {seeds[0]: 0, seeds[-1]: 0}))} seeds"
    epochs = "1 epoch" if newest["epochs"] == 1 else f"{newest['epochs']} epochs"
    details = [
        of_run(store, {"run_id": newest["run_id"], "model": base}),
        f"{printable(newest['dataset'])}, {newest['examples']} texts, {epochs}; "
        + (f"removed from: {printable(newest['roles'])}" if what is None else what),
        f"{counted}, ± one standard deviation{_words(untouched)}",
    ]
    chart = chart.properties(width=look.width, height=look.height)
    return theme.finish(chart, look, "Fine-tuning and removal", details)


def _words(untouched: dict[str, Any] | None) -> str:
    if untouched is None:
        return ""
    band = ", ± three standard deviations" if untouched["three_sigma"] is not None else ""
    return f"; gray: {untouched['seeds']} untouched{band}"


def _accuracy(column: str = "accuracy:Q") -> alt.Y:
    return alt.Y(column, title="accuracy", scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5))


def _decile(of: str) -> alt.X:
    ticks = alt.Axis(grid=False, values=list(range(1, 11)), format="d")
    scale = alt.Scale(domain=[0.5, 10.5], nice=False)
    return alt.X("decile:Q", title=f"removed decile (1: smallest {of})", scale=scale, axis=ticks)


def _untouched(look: theme.Style, x: alt.X, row: dict[str, Any] | None) -> list[Any]:
    if row is None:
        return []
    spread = row["three_sigma"] or 0.0
    low, high = row["untouched"] - spread, row["untouched"] + spread
    ends = [{"decile": end, "low": low, "high": high, "accuracy": row["untouched"]} for end in (0.5, 10.5)]
    base = alt.Chart(theme.inline(ends))
    line = base.mark_line(color=theme.GRAY, strokeWidth=look.line, strokeDash=[4, 2]).encode(x=x, y=_accuracy())
    if not spread:
        return [line]
    return [base.mark_area(color=theme.PALE, opacity=0.6).encode(x=x, y=_accuracy("low:Q"), y2="high:Q"), line]


def _lines(look: theme.Style, x: alt.X, rows: list[dict[str, Any]], interactive: bool) -> list[Any]:
    parts = {order: theme.unbroken([row["decile"] for row in rows if row["order"] == order]) for order in _ORDERS}
    drawn: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["order"], row["decile"])):
        spread = row["spread"] or 0.0
        # Points of both orders stand side by side, so that no error bar hides the other.
        at = row["decile"] + _ASIDE[row["order"]]
        value = {"what": _ORDERS[row["order"]], "decile": row["decile"], "at": at, "accuracy": row["accuracy"]}
        value |= {"low": row["accuracy"] - spread, "high": row["accuracy"] + spread, "seeds": row["seeds"]}
        value["part"] = f"{row['order']} {parts[row['order']][row['decile']]}"
        drawn.append(value | {"delta": row["delta"], "delta in sigma": row["delta_sigma"]})
    there = {name: color for name, color in _COLORS.items() if any(row["what"] == name for row in drawn)}
    color = alt.Color(
        "what:N",
        scale=alt.Scale(domain=[*there], range=[*there.values()]),
        legend=alt.Legend(orient="top", title=None, symbolType="stroke", direction="horizontal"),
    )
    hover = [
        alt.Tooltip(f"{name}:Q", format=".3g") for name in ("decile", "accuracy", "delta", "delta in sigma", "seeds")
    ]
    base = alt.Chart(theme.inline(drawn))
    x = x.copy()
    x.shorthand = "at:Q"
    bars = base.mark_rule(strokeWidth=look.line).encode(x=x, y=_accuracy("low:Q"), y2="high:Q", color=color)
    lines = base.mark_line(strokeWidth=1.3 * look.line).encode(x=x, y=_accuracy(), color=color, detail="part:N")
    dots = base.mark_point(filled=True, size=3.0 * look.font, opacity=1.0).encode(
        x=x, y=_accuracy(), color=color, tooltip=hover if interactive else alt.Undefined
    )
    return [bars, lines, dots]
