"""`rmtscan inspect`: list what a scan would analyze, from headers alone."""

from __future__ import annotations

from typing import Annotated

import typer

from scanner.checkpoint import Selection
from scanner.cli import options
from scanner.cli.output import FormatOption, note, note_skipped, write


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "inspect", inspect)


def inspect(
    reference: Annotated[str, typer.Argument(metavar="REF", help="A checkpoint, as for scan.", show_default=False)],
    *,
    selection: Selection,
    form: FormatOption = "table",
) -> None:
    """List the matrices that a scan would analyze, and the tensors it would skip and why, without reading weights.

    The cost of a matrix is that of its decomposition, in GFLOP and as a percentage of the total.

    Examples:

        rmtscan inspect ./my-model

        rmtscan inspect ./my-model --format csv | grep expert
    """
    from collections import Counter

    import pyarrow as pa

    from scanner.checkpoint import list_matrices, open_checkpoint
    from scanner.checkpoint.formats.commands import beside_note
    from scanner.checkpoint.names import printable
    from scanner.engine.plan import decomposition_cost

    checkpoint = open_checkpoint(reference, identify=False)
    inventory = list_matrices(checkpoint, selection, compare_bytes=False)
    costs = [decomposition_cost(ref.rows, ref.cols) / 1e9 for ref in inventory.matrices]
    total = sum(costs)
    columns = ("stack", "layer", "role", "module", "head", "expert", "rows", "cols", "dtype", "role_source")
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
    names = ("tensor", *columns, "cost_gflop", "cost_percent", "skipped")
    schema = pa.schema([(name, numbers.get(name, pa.string())) for name in names])
    write(pa.table(table, schema=schema), form, whole=True)
    note_skipped(Counter(skip.reason for skip in inventory.skipped))
    for copy, original in inventory.perhaps_tied:
        note(
            f"  {printable(copy)} may be tied with {printable(original)}: they have the same shape; "
            "scan compares their weights and skips a copy"
        )
    if checkpoint.beside:
        note(f"  {beside_note(checkpoint.beside)}")
    note(
        f"{checkpoint.model}: {checkpoint.format}, {checkpoint.architecture or 'no config'}, "
        f"{checkpoint.parameters:,} parameters ({checkpoint.dtype}); "
        f"{len(inventory.matrices)} matrices to analyze ({total:,.1f} GFLOP), {len(inventory.skipped)} tensors skipped"
    )
