"""`rmtscan inspect`: what a scan would analyze, what it costs, and what it would skip, from headers alone."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.checkpoint import Selection
from scanner.cli import options
from scanner.cli.answers import AnswerOptions, named, printer
from scanner.cli.output import line_width, note, note_skipped, write
from scanner.cli.progress import waiting
from scanner.cli.tables import View, duration, wrapped
from scanner.plain import escaped

if TYPE_CHECKING:
    import pyarrow as pa

    from scanner.checkpoint import Inventory, MatrixRef

#: Units of cost per second of a core, as those of the nodes in docs/cluster.md.
_RATE = 2e10
#: Columns of the list of tensors, what a terminal shows of them, and columns of the summary.
_COLUMNS = tuple(
    "tensor stack layer role module head expert rows cols dtype role_source cost_gflop cost_percent skipped".split()
)
_SHOWN = ("tensor", "layer", "role", "rows", "cols", "cost_gflop", "skipped")
_SUMMARY = ("role", "matrices", "shapes", "cost_gflop", "percent", "core_seconds")
_TOTALS = ("matrices", "cost_gflop", "percent", "core_seconds")
#: Shapes that the summary names for a role.
_SHAPES = 3


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "inspect", inspect, without=("all_rows",))


def inspect(
    reference: Annotated[str, typer.Argument(metavar="REF", help="A checkpoint, as for scan.", show_default=False)],
    *,
    selection: Selection,
    all_tensors: Annotated[bool, typer.Option("--all", help="List every tensor in format table, too.")] = False,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            "-s",
            help="Take the speed of a core from the scans in this store.",
            show_default="2e10 units of cost per second",
        ),
    ] = None,
    table: AnswerOptions,
) -> None:
    """Say what a scan would analyze and what it costs, by role, and what it would skip and why, without reading weights.

    Formats json, csv and parquet, and format table with --all, have one row per matrix and skipped tensor. Cost is that of the
    decomposition, in GFLOP and as a percentage of the total; the time is that of one core, tests of the singular vectors included.
    Without --store, the core does 2e10 units of cost per second (docs/cluster.md), which is rather slow.

    Examples:

        rmtscan inspect ./my-model

        rmtscan inspect ./my-model --store results

        rmtscan inspect ./my-model --format csv | grep expert
    """
    listed = all_tensors or table.form != "table" or table.output is not None
    # --all has another meaning here, and without --rows all rows are shown.
    view = View(shown=named(_SHOWN), caption=False) if listed else View(caption=False, totals=_TOTALS)
    what = "the list of tensors" if listed else "the table of roles (--all: the list of tensors)"
    columns = _COLUMNS if listed else _SUMMARY
    show = printer(table, view, columns=columns, rows=None, more="a larger --rows prints them", what=what)

    from scanner.checkpoint import list_matrices, open_checkpoint
    from scanner.checkpoint.formats.commands import beside_note
    from scanner.checkpoint.names import printable
    from scanner.engine.plan import decomposition_cost

    with waiting(sys.stderr, f"reading headers of {reference}"):
        rate, basis = _speed(store)
        checkpoint = open_checkpoint(reference, identify=False)
        inventory = list_matrices(checkpoint, selection, compare_bytes=False)
    costs = [decomposition_cost(ref.rows, ref.cols) / 1e9 for ref in inventory.matrices]
    summary = (
        f"{checkpoint.model}: {checkpoint.format}, {checkpoint.architecture or 'no config'}, "
        f"{checkpoint.parameters:,} parameters ({checkpoint.dtype})"
    )
    counts = f"{len(inventory.matrices)} matrices to analyze ({sum(costs):,.1f} GFLOP), {len(inventory.skipped)} tensors skipped"
    if not listed:
        width = line_width()
        print("\n".join([*([escaped(summary)] if width is None else wrapped(summary, width)), ""]))
        show(_summary(inventory, costs, rate))
        _write_skipped(inventory)
    else:
        show(_tensors(inventory, costs))
        note_skipped(Counter(skip.reason for skip in inventory.skipped))
    for copy, original in inventory.perhaps_tied:
        note(
            f"  {printable(copy)} may be tied with {printable(original)}: they have the same shape; "
            "scan compares their weights and skips a copy"
        )
    if checkpoint.beside:
        note(f"  {beside_note(checkpoint.beside)}")
    if not listed:
        note(f"{counts}; --all lists every tensor")
        note(f"{_expected(inventory, rate)} at {basis}, without random controls and the start of Ray (about 10 s)")
    else:
        note(f"{summary}; {counts}")


def _tensors(inventory: Inventory, costs: list[float]) -> pa.Table:
    """Return one row per matrix and skipped tensor."""
    import pyarrow as pa

    from scanner.checkpoint.names import printable

    total = sum(costs)
    columns = _COLUMNS[1:-3]
    # Columns, because a dictionary for each row takes most of the memory of large checkpoints.
    tensors = [*(ref.tensor for ref in inventory.matrices), *(skip.tensor for skip in inventory.skipped)]
    nothing = [None] * len(inventory.skipped)
    table: dict[str, list[object]] = {
        "tensor": [printable(name) for name in tensors],
        **{name: [getattr(ref, name) for ref in inventory.matrices] + nothing for name in columns},
        "cost_gflop": [*costs, *nothing],
        "cost_percent": [*(100.0 * cost / total for cost in costs), *nothing],
        "skipped": [None] * len(inventory.matrices) + [skip.reason for skip in inventory.skipped],
    }
    numbers = {name: pa.int32() for name in ("layer", "head", "expert", "rows", "cols")}
    numbers |= {name: pa.float64() for name in ("cost_gflop", "cost_percent")}
    return pa.table(table, schema=pa.schema([(name, numbers.get(name, pa.string())) for name in _COLUMNS]))


def _summary(inventory: Inventory, costs: list[float], rate: float) -> pa.Table:
    """Return one row per role, the most expensive first."""
    import pyarrow as pa

    from scanner.engine.plan import expected_seconds

    groups: dict[str, list[tuple[MatrixRef, float]]] = {}
    for ref, cost in zip(inventory.matrices, costs, strict=True):
        groups.setdefault(ref.role, []).append((ref, cost))
    total = sum(costs)
    rows = [
        {
            "role": role,
            "matrices": len(of_role),
            "shapes": _shapes(ref for ref, _ in of_role),
            "cost_gflop": sum(cost for _, cost in of_role),
            "percent": 100.0 * sum(cost for _, cost in of_role) / total if total else None,
            "core_seconds": sum(expected_seconds(ref.rows, ref.cols, rate) for ref, _ in of_role),
        }
        for role, of_role in sorted(groups.items(), key=lambda item: -sum(cost for _, cost in item[1]))
    ]
    kinds = {"role": pa.string(), "matrices": pa.int32(), "shapes": pa.string()}
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in _SUMMARY])
    return pa.Table.from_pylist(rows, schema=schema)


def _write_skipped(inventory: Inventory) -> None:
    """Print one row per reason for which tensors are skipped."""
    import pyarrow as pa

    if inventory.skipped:
        print()
        tensors: dict[str, list[str]] = {}
        for skip in inventory.skipped:
            tensors.setdefault(skip.reason, []).append(skip.tensor)
        reasons = sorted(tensors.items(), key=lambda item: -len(item[1]))
        skipped = {
            "skipped": pa.array([len(names) for _, names in reasons], pa.int32()),
            "reason": pa.array([reason for reason, _ in reasons], pa.string()),
            "example": pa.array([names[0] for _, names in reasons], pa.string()),
        }
        write(
            pa.table(skipped),
            "table",
            view=View(caption=False, totals=("skipped",)),
            rows=50,
            more="--all lists every tensor",
        )


def _shapes(refs: Iterable[MatrixRef]) -> str:
    counts = Counter((ref.rows, ref.cols) for ref in refs)
    shown = [f"{rows}×{cols}" for (rows, cols), _ in counts.most_common(_SHAPES)]
    return ", ".join(shown) + (f" and {len(counts) - _SHAPES} more" if len(counts) > _SHAPES else "")


def _speed(url: str | None) -> tuple[float, str]:
    """Return the units of cost that a core does in a second, and where that is from: scans on CPUs in a store, or a constant."""
    usual = f"{_RATE:.1e} units/s"
    if url is None:
        return _RATE, f"{usual} (--store STORE: at the speed of your scans)"
    from scanner.engine.plan import expected_seconds
    from scanner.store import open_store

    opened = open_store(url)
    rows = opened.sql((Path(__file__).parent / "sql" / "speed.sql").read_text("utf-8")).to_pylist()
    units = sum(row["matrices"] * expected_seconds(row["rows"], row["cols"], 1.0) for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    if not seconds:
        return _RATE, f"{usual}, because {escaped(opened.url)} has no scan on a CPU"
    count = sum(row["matrices"] for row in rows)
    return units / seconds, f"{units / seconds:.1e} units/s, the speed of {count:,} matrices in {escaped(opened.url)}"


def _expected(inventory: Inventory, rate: float) -> str:
    """Say how long the cores of this machine take, which share the matrices but not one of them."""
    from scanner.engine.plan import expected_seconds

    seconds = [expected_seconds(ref.rows, ref.cols, rate) for ref in inventory.matrices]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wall = max(max(seconds, default=0.0), sum(seconds) / cores)
    return f"about {duration(wall)} on the {cores} cores of this machine"
