"""The command `rmtscan`: its verbs, and the exit status of errors."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from scanner.cli import logs, options
from scanner.errors import ScannerError, StoreWarning
from scanner.extensions import load_extensions
from scanner.version import __version__

#: Modules of this package with a function `register(app)`, in the order of the help.
VERBS = (
    "scan",
    "inspect",
    "compare",
    "query",
    "sql",
    "models",
    "show",
    "status",
    "calibrate",
    "experiments",
    "compress",
    "plot",
    "report",
    "site",
    "export",
    "publish",
    "verify",
    "compact",
    "merge",
    "rm",
    "nightly",
)

#: Errors of a stdout that takes no more.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def application() -> typer.Typer:
    """Build the command with all verbs, those of extensions included.

    Raises:
        ScannerError: an extension cannot be imported.
    """
    load_extensions()
    app = typer.Typer(
        name="rmtscan",
        cls=options.Group,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Find where a model stores what it learned: compare every weight matrix of a checkpoint with random matrix theory.",
        epilog="Exit status: 0 done, 1 an error you can act on, 2 wrong usage, 3 done but some tensors failed, 130 interrupted. "
        "Data goes to stdout, everything else to stderr.",
    )
    app.callback()(_options)
    for name in VERBS:
        importlib.import_module(f"scanner.cli.{name}").register(app)
    return app


def _version(asked: bool) -> None:
    if asked:
        print(f"rmtscan {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a `ScannerError` becomes one line on stderr and exit status 1, and so does output that cannot be written."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", StoreWarning)
    _prepare_streams()
    logs.use()
    try:
        try:
            application()(arguments, prog_name="rmtscan")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        _discard_output()
        sys.exit(1)
    except ScannerError as error:
        logs.say_error(str(error))
        sys.exit(1)
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        _discard_output()
        logs.say_error(f"the output cannot be written to stdout: {os.strerror(error.errno)}")
        sys.exit(1)


def _prepare_streams() -> None:
    """Open what the caller closed (`>&-`) to nothing, and write characters that the locale lacks as escapes."""
    # In this order: a new file gets the lowest free number, which is that of the closed stream. The next file that is opened must
    # not get it, because libraries print to it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 (stays open)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Let Python flush what is left of stdout to nothing when it ends."""
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print a warning about a store as one line; Python adds the line of code to others."""
    if issubclass(category, StoreWarning):
        text = str(message).replace("`force`", "--force")
        logs.say(text if logs.is_json() else f"warning: {text}", event="warning", level="warning")
    else:
        _SHOW(message, category, *where, **more)


_SHOW = warnings.showwarning


if __name__ == "__main__":
    main()
