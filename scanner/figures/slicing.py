"""What a model loses when its norms leave out a tenth of the directions of the activations."""

from __future__ import annotations

from typing import Any

from scanner.checkpoint.names import printable
from scanner.figures import theme
from scanner.figures.ablation import beyond, by_decile, damage, measured
from scanner.figures.activations import one_run
from scanner.figures.choice import rows_of
from scanner.store import Store


def slicing(store: Store, *, interactive: bool = False, model: str | None = None, run: str | None = None) -> Any:
    """Damage by decile of the covariance's eigenvalues, a line for each order of projection and norm, with its standard error.

    Source: arXiv 2410.17770v1, App. F.

    Raises:
        ScannerError: nothing is measured, or not of this model.
    """
    runs = rows_of(store, "point_runs", kind="slicing")
    nothing = f"no slicing in {store.url}: 'rmtscan slicing REF --text FILE' measures it"
    chosen = one_run(runs, model, run, nothing)
    found = store.query("slicing", run=chosen["run_id"]).to_pylist()
    rows = [
        row
        | {
            "what": row["place"],
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
    chart = damage(rows, by_decile("decile of eigenvalues (1: smallest)"), metric, look, interactive)
    caption = [
        printable(chosen["model"]),
        *measured(runs, chosen, metric, found[0]["dataset"], found[0]["baseline"]),
        "bars: standard error",
        *beyond(rows),
    ]
    title = "What a model loses without a tenth of the directions at its norms"
    return theme.finish(chart, look, title, caption)
