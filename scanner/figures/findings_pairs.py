"""What fine-tuning did to a pair of models, in sentences: from rows of the comparison, with the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from scanner.figures.report_words import Finding, Row, counted, listing, parameter, percent, where

_NAMED = 4


def change(rows: Sequence[Row], shown_by: str = "") -> Finding | None:
    """How far fine-tuning moved the weights, and where most; rows of table `pairs`."""
    known = [row for row in rows if row["relative_change"] is not None]
    if not known:
        return None
    middle = median(row["relative_change"] for row in known)
    most = max(known, key=lambda row: row["relative_change"])
    same = [row for row in rows if row["identical"]]
    detail = (
        f"‖Δ‖/‖W‖ is {percent(middle)} in the median of {counted(len(known), 'matrix', 'matrices')}, and "
        f"{percent(most['relative_change'])} "
        f"at most, in {where(most)}."
    )
    if same:
        listed = listing([where(row) for row in same[:_NAMED]])
        more = f" and {len(same) - _NAMED} more" if len(same) > _NAMED else ""
        detail += f" Exactly unchanged: {listed}{more}."
    else:
        detail += " No matrix is exactly unchanged."
    if len(same) == len(rows):
        return Finding(headline="Not a single weight matrix differs", detail=detail, query=shown_by)
    return Finding(headline=f"Fine-tuning moved the weights by {percent(middle)}", detail=detail, query=shown_by)


def turned(rows: Sequence[Row], base: str, tuned: str) -> Finding | None:
    """In which decile the singular vectors turned most; rows of query `pair_by_decile`."""
    deciles: dict[int, list[tuple[int, float]]] = {}
    inside = all(row["u_left"] is not None and row["v_left"] is not None for row in rows)
    columns = ("u_left", "v_left") if inside else ("u_turned", "v_turned")
    for row in rows:
        values = [row[column] for column in columns if row[column] is not None]
        if values:
            deciles.setdefault(row["decile"], []).append((row["matrices"] or 1, sum(values) / len(values)))
    means = {one: sum(n * value for n, value in found) / sum(n for n, _ in found) for one, found in deciles.items()}
    if len(means) < 2 or not max(means.values()) > 0:
        return None
    most, least = max(means, key=lambda one: means[one]), min(means, key=lambda one: means[one])
    what = (
        "the share of a decile's subspace that left it"
        if inside
        else "1 - overlap of a vector with its best base vector"
    )
    detail = (
        f"Decile {most} of ten ({_decile(most)}): {what} is {means[most]:.3g} on average over roles and both sides; "
        f"least in decile "
        f"{least} ({_decile(least)}): {means[least]:.3g}. "
    )
    detail += (
        "By decile, smallest singular values first: " + ", ".join(f"{means[one]:.2g}" for one in sorted(means)) + "."
    )
    names = {1: "of the smallest singular values", 10: "of the largest singular values"}
    headline = f"The singular vectors {names.get(most, f'in decile {most}')} turned most"
    return Finding(
        headline=headline,
        detail=detail,
        query=f"rmtscan query pair_by_decile{parameter('base', base)}{parameter('tuned', tuned)}",
    )


def gained(rows: Sequence[Row], shown_by: str = "") -> Finding | None:
    """Outliers gained and lost, and intruder dimensions; rows of table `pairs`."""
    known = [row for row in rows if row["outliers_right_base"] is not None and row["outliers_right_tuned"] is not None]
    if not known:
        return None
    right, left = (
        [sum(row[f"outliers_{side}_{which}"] or 0 for row in known) for which in ("base", "tuned")]
        for side in ("right", "left")
    )
    intruding = [row for row in rows if row["intruders"]]
    count = sum(row["intruders"] for row in intruding)
    detail = (
        f"Above the bulk {right[0]:,} before and {right[1]:,} after fine-tuning, below it {left[0]:,} and "
        f"{left[1]:,}. An intruder is one of "
        "the ten leading left singular vectors that resembles no base vector (overlap below 0.5)"
    )
    if count:
        most = max(intruding, key=lambda row: row["intruders"])
        detail += f"; most in {where(most)}: {most['intruders']}."
    headline = f"{count or 'No'} intruder {'dimension' if count == 1 else 'dimensions'}"
    return Finding(
        headline=f"{headline}, and {_more(right[1] - right[0])} above the bulk",
        detail=detail if count else detail + ".",
        query=shown_by,
    )


def _more(count: int) -> str:
    if not count:
        return "as many outliers as before"
    return f"{counted(abs(count), 'outlier', 'outliers')} {'more' if count > 0 else 'fewer'}"


def _decile(decile: int) -> str:
    return {1: "the smallest singular values", 10: "the largest"}.get(
        decile, "1 holds the smallest singular values, 10 the largest"
    )
