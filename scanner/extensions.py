"""Extensions: modules outside the package that register formats, metrics, queries, figures or experiments on import."""

from __future__ import annotations

import importlib
import os
from functools import cache
from importlib.metadata import entry_points

from scanner.errors import ScannerError

VARIABLE = "RMTSCAN_EXTENSIONS"
"""Environment variable with the names of modules to import, separated by commas."""
GROUP = "rmtscan.extensions"
"""Entry-point group in which installed packages name their extension modules."""


def extension_names() -> tuple[str, ...]:
    """Return the names of the extension modules, those of installed packages first."""
    named = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    installed = sorted(entry.value for entry in entry_points(group=GROUP))
    return tuple(dict.fromkeys(filter(None, [*installed, *named])))


def load_extensions() -> None:
    """Import every extension module once; a module registers what it adds while it is imported.

    Raises:
        ScannerError: a module cannot be imported.
    """
    _load(extension_names())


@cache
def _load(names: tuple[str, ...]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ScannerError(
                f"extension {name!r} cannot be imported ({type(error).__name__}: {error}): correct {VARIABLE}, or install the "
                "package that contains it"
            ) from error
