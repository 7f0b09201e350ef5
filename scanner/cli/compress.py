"""`rmtscan compress`: write a checkpoint of lower rank, and measure it beside others of the same size."""

from __future__ import annotations

import sys
from dataclasses import asdict

import typer

from scanner.cli import options
from scanner.cli.answers import TableOptions, printer
from scanner.cli.output import note
from scanner.cli.progress import waiting
from scanner.cli.run import terminate_like_interrupt
from scanner.compress import Config


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "compress", compress)


def compress(config: Config, *, table: TableOptions) -> None:
    """Write a checkpoint whose matrices have the low rank that a budget of parameters allows, and measure what it costs.

    The table has the intact model, the checkpoint that was written, plain truncation (energy) and truncation after whitening
    (svd-llm), all of the same size. nats is the increase of the negative log-likelihood per token with its 95 % interval, and
    versus that over the checkpoint that was written. Nothing is retrained. docs/compress.md has the formulas and results.

    Examples:

        rmtscan compress ./my-model --budget 0.9 --by p_scale --text novel.txt -o small

        rmtscan compress ./my-model --budget 0.8 --by importance --text novel.txt --factored -o smaller
    """
    numbers = "share perplexity nats nats_low nats_high versus_chosen versus_low versus_high".split()
    show = printer(table, columns=("rule", "parameters", *numbers))

    import pyarrow as pa

    from scanner.checkpoint.names import printable
    from scanner.compress import compress as write_compressed

    with terminate_like_interrupt():
        try:
            with waiting(sys.stderr, "loading the model") as say:

                def tell(text: str) -> None:
                    note(text)
                    say(text)

                done = write_compressed(config, tell=tell)
        except KeyboardInterrupt:
            note("interrupted: nothing was written")
            raise
    schema = pa.schema([("rule", pa.string()), ("parameters", pa.int64())])
    schema = pa.schema([*schema, *((name, pa.float64()) for name in numbers)])
    show(pa.Table.from_pylist([asdict(row) for row in done.rows], schema=schema))
    for line in done.notes:
        note(line)
    saved = 1.0 - done.parameters_after / done.parameters_before
    note(
        f"{printable(str(done.path))}: {done.matrices} matrices; as factors, the model has {done.parameters_after:,} of "
        f"{done.parameters_before:,} parameters ({100 * saved:.1f} % fewer)"
    )
