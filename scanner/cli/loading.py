"""A sign on the terminal that a command has begun: loading libraries may take seconds, above all the first time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_SHOWN: list[ExitStack] = []


@contextmanager
def loading() -> Iterator[None]:
    """Show a spinner on stderr after a second, if that is a terminal, until something else is shown (`loaded`)."""
    from scanner.cli.progress import spinner

    shown = ExitStack()
    shown.enter_context(spinner(sys.stderr, "loading"))
    _SHOWN.append(shown)
    try:
        yield
    finally:
        loaded()


def loaded() -> None:
    """End the spinner: something is shown from now on."""
    while _SHOWN:
        _SHOWN.pop().close()
