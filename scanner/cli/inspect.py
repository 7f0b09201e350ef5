"""`rmtscan inspect`: what a scan would do, from headers alone."""

from __future__ import annotations

from typing import Annotated

import typer

from scanner.cli.output import Format, FormatOption, note, write
from scanner.cli.selection import EmbeddingsOption, HeadsOption, LayersOption, OnlyOption, selection


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command("inspect")(inspect)


def inspect(
    reference: Annotated[str, typer.Argument(metavar="REF", help="A checkpoint, as for scan.", show_default=False)],
    only: OnlyOption = "",
    layers: LayersOption = "",
    embeddings: EmbeddingsOption = False,
    heads: HeadsOption = False,
    form: FormatOption = Format.table,
) -> None:
    """List the matrices that a scan would analyse, and everything it would skip and why, without reading a weight.

    Examples:

        rmtscan inspect ./my-model

        rmtscan inspect ./my-model --format csv | grep expert
    """
    import pyarrow as pa

    from scanner.checkpoint import list_matrices, open_checkpoint
    from scanner.checkpoint.names import printable
    from scanner.engine.plan import decomposition_cost

    checkpoint = open_checkpoint(reference, identify=False)
    inventory = list_matrices(checkpoint, selection(only, layers, embeddings, heads))
    costs = {ref.key: decomposition_cost(ref.rows, ref.cols) for ref in inventory.matrices}
    total = sum(costs.values()) or 1.0
    columns = ("stack", "layer", "role", "head", "expert", "rows", "cols", "dtype", "role_source")
    lines = [
        {"tensor": printable(ref.tensor)}
        | {name: getattr(ref, name) for name in columns}
        | {"cost_percent": 100.0 * costs[ref.key] / total, "skipped": None}
        for ref in inventory.matrices
    ]
    lines += [{"tensor": printable(skip.tensor), "skipped": skip.reason} for skip in inventory.skipped]
    numbers = {name: pa.int32() for name in ("layer", "head", "expert", "rows", "cols")} | {
        "cost_percent": pa.float64()
    }
    names = ("tensor", *columns, "cost_percent", "skipped")
    write(
        pa.Table.from_pylist(lines, schema=pa.schema([(name, numbers.get(name, pa.string())) for name in names])), form
    )
    note(
        f"{checkpoint.model}: {checkpoint.format}, {checkpoint.architecture or 'no config'}, "
        f"{checkpoint.parameters:,} parameters ({checkpoint.dtype}); "
        f"{len(inventory.matrices)} matrices to analyse, {len(inventory.skipped)} tensors skipped"
    )
