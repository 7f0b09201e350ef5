"""`rmtscan calibrate`: simulate the null table of the Kolmogorov-Smirnov statistic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import TableOptions, printer
from scanner.cli.output import note
from scanner.cli.progress import waiting


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "calibrate", calibrate)


def calibrate(
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the table to this file (.npz).", show_default=False),
    ] = None,
    draws: Annotated[int, typer.Option(min=1000, help="Number of random vectors for each length.")] = 1_000_000,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the simulation.", show_default="that of the included table")
    ] = None,
    table: TableOptions,
) -> None:
    """Simulate the null distribution of D and compare it with the table included in the package.

    Prints quantiles of sqrt(n) D for both. With another seed, the difference shows the noise of the table.
    The default number of draws takes about four minutes on one core.
    """
    percents = (50, 90, 95, 99)
    names = ("n", *(f"{kind}q{percent}" for percent in percents for kind in ("", "shipped_")))
    show = printer(table, columns=names)

    import numpy as np
    import pyarrow as pa

    from scanner.errors import ScannerError
    from scanner.rmt import ks_null

    if output is not None and not output.resolve().parent.is_dir():
        raise ScannerError(f"{output.parent} is not a folder: create it, or choose another `output`")
    note(f"simulating {draws:,} vectors for each of {len(ks_null.TABLE_LENGTHS)} lengths")
    with waiting(sys.stderr, "simulating"):
        simulated = ks_null.make_table(draws, seed=ks_null.DEFAULT_SEED if seed is None else seed)
    shipped = ks_null.shipped_table()
    rows = []
    for length, new, old in zip(simulated.lengths, simulated.quantiles, shipped.quantiles, strict=True):
        unscale = np.sqrt(length) / ks_null.scaled(1.0, int(length))
        row: dict[str, float] = {"n": int(length)}
        for percent in percents:
            survival = 1.0 - percent / 100.0
            row[f"q{percent}"] = float(np.interp(-survival, -simulated.survival, new) * unscale)
            row[f"shipped_q{percent}"] = float(np.interp(-survival, -shipped.survival, old) * unscale)
        rows.append(row)
    show(pa.Table.from_pylist(rows))
    if output is not None:
        simulated.save(output)
        note(f"written to {output}")
