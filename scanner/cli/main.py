"""The command `rmtscan`: its verbs, and how errors leave it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scanner.cli import (
    calibrate,
    compare,
    experiments,
    inspect,
    plot,
    publish,
    query,
    report,
    scan,
)
from scanner.errors import ScannerError
from scanner.version import __version__

app = typer.Typer(
    name="rmtscan",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Where in a model is what it learned? Compare every weight matrix of a checkpoint with random matrix theory.",
    epilog="Exit status: 0 done, 1 an error you can act on, 2 wrong usage, 3 done but some tensors failed, 130 interrupted. "
    "Data goes to stdout, everything else to stderr.",
)
scan.register(app)
inspect.register(app)
compare.register(app)
query.register(app)
calibrate.register(app)
experiments.register(app)
plot.register(app)
report.register(app)
publish.register(app)


def _version(asked: bool) -> None:
    if asked:
        print(f"rmtscan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a `ScannerError` becomes one line on stderr and exit status 1."""
    try:
        app(arguments, prog_name="rmtscan")
    except ScannerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
