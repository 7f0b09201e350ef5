"""A section for the card of a model on the Hub, in Markdown: a badge, and what the scan found, role by role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.export.matrices import SQL
from scanner.store import Store
from scanner.store.publish_card import markdown
from scanner.version import __version__

_BEGIN, _END = "<!-- begin of rmtscan -->", "<!-- end of rmtscan -->"
_BADGE = "https://img.shields.io/badge"


def model_card(store: Store, model: str) -> str:
    """Return a section of Markdown for the card of a model, between two comments, so that a later one can replace it.

    Names are escaped, and paths of the machine are left out.

    Raises:
        ScannerError: the store has no matrix of the model.
    """
    rows = store.sql((SQL / "card.sql").read_text("utf-8"), {"model": model}).to_pylist()
    if not rows:
        raise ScannerError(f"{printable(model)} has no rows in {store.url}")
    scan = store.query("scans", model=model).to_pylist()[0]
    revision = str(scan["revision"] or "")
    at = f" (revision {markdown(revision)})" if revision else ""
    tensors = f"{sum(row['matrices'] for row in rows)} matrices"
    tensors += f", {scan['failed']} tensors failed" if scan["failed"] else ""
    kinds = ", ".join(dict.fromkeys(row["sigma_kinds"] for row in rows if row["sigma_kinds"]))
    lines = [
        _BEGIN,
        "## Weights against random matrix theory",
        "",
        badge(rows),
        "",
        f"{tensors} of {markdown(model)}{at}, measured with rmtscan {__version__}. *Below* and *above* are singular values outside "
        f"the Marchenko-Pastur bulk (σ: {kinds}). p is the mean p-value of the singular vectors (u: output side, v: input side): "
        "random vectors have 0.5, and lower values differ more from independent entries. Under the scale null, unequal row and "
        "column scale is taken into account: what is left is direction.",
        "",
        "| role | matrices | below | above | p (u) | p (v) | p (u), scale null | p (v), scale null |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(_row(row) for row in rows),
        _END,
    ]
    return "\n".join(lines) + "\n"


def badge(rows: Sequence[dict[str, Any]]) -> str:
    """Return a badge with the mean p of all matrices in Markdown; gray if the vectors were not tested."""
    known = [(row["matrices"], p) for row in rows for p in (row["u_p"], row["v_p"]) if p is not None]
    total = sum(count for count, _ in known)
    if not total:
        told, color = "singular values only", "lightgrey"
    else:
        told, color = f"mean p {sum(count * p for count, p in known) / total:.2f} (random 0.50)", "blue"
    text = quote(told.replace("-", "--").replace("_", "__"), safe="")
    return f"![rmtscan: {told}]({_BADGE}/rmtscan-{text}-{color})"


def _row(row: dict[str, Any]) -> str:
    cells = [markdown(row["role"]), f"{row['matrices']}", f"{row['below'] or 0}", f"{row['above'] or 0}"]
    cells += ["" if (p := row[name]) is None else f"{p:.2f}" for name in ("u_p", "v_p", "u_p_scale", "v_p_scale")]
    return f"| {' | '.join(cells)} |"
