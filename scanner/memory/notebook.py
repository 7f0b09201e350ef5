"""What a notebook shows of a result: one line and one small table by role, with every name as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape

import pyarrow as pa

from scanner.checkpoint import ROLES
from scanner.checkpoint.names import printable

_MOST_REASONS = 3
_MOST_CHARACTERS = 90
_HEAD = ("role", "matrices", "below | above the bulk", "mean p (u)", "mean p (v)", "stable rank")
_RIGHT = ' style="text-align:right"'


def html(model: str, matrices: pa.Table, failures: pa.Table, skipped: Mapping[str, str]) -> str:
    """Return the HTML of a result: at most one row per role, and the most frequent reasons."""
    roles = Counter(matrices["role"].to_pylist())
    columns = ["role", "outliers_left", "outliers_right", "u_p_mean", "v_p_mean", "stable_rank"]
    rows = matrices.select(columns).to_pylist()
    ordered = sorted(roles, key=lambda role: (ROLES.index(role) if role in ROLES else len(ROLES), role))
    lines = [f"<th{_RIGHT}>{escape(name)}</th>" for name in _HEAD]
    body = ["".join(lines)]
    for role in ordered:
        own = [row for row in rows if row["role"] == role]
        cells = [
            role,
            f"{roles[role]}",
            f"{sum(row['outliers_left'] or 0 for row in own)} | {sum(row['outliers_right'] or 0 for row in own)}",
            *(_mean([row[name] for row in own]) for name in ("u_p_mean", "v_p_mean", "stable_rank")),
        ]
        body.append("".join(f"<td{_RIGHT}>{_text(cell)}</td>" for cell in cells))
    told = f"<b>{_text(model)}</b>: {matrices.num_rows} matrices, {len(skipped)} tensors skipped"
    told += f", <b>{failures.num_rows} failed</b>" if failures.num_rows else ""
    notes = [f"{row['tensor']}: {row['message']}" for row in failures.slice(0, _MOST_REASONS).to_pylist()]
    reasons = Counter(skipped.values()).most_common(_MOST_REASONS)
    notes += [f"skipped {count}: {reason}" for reason, count in reasons]
    table = "".join(f"<tr>{row}</tr>" for row in body)
    small = "".join(f"<br>{_text(note)}" for note in notes)
    return f'<div>{told}<table>{table}</table><small style="color:gray">{small.removeprefix("<br>")}</small></div>'


def _mean(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None and value == value]
    return f"{sum(numbers) / len(numbers):.3g}" if numbers else ""


def _text(text: str) -> str:
    shown = printable(text)
    return escape(shown if len(shown) <= _MOST_CHARACTERS else f"{shown[: _MOST_CHARACTERS - 1]}…")
