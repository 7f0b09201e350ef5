"""The commands that scan the models of a folder, for messages that ask the user to choose one."""

import shlex
from collections.abc import Sequence

from scanner.checkpoint.formats.parts import first_parts
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files

_MAX_SHOWN = 20


def reference_of(files: Files, name: str) -> str:
    """Return the reference of a file or folder in a folder, as `open_checkpoint` accepts it."""
    folder = files.source if files.named is None else files.source[: -len(files.named)]
    return f"{folder.rstrip('/')}/{name}"


def commands(references: Sequence[str]) -> str:
    """Return the command that scans each of several references, as text."""
    shown = ", ".join(f"rmtscan scan {_quoted(reference)}" for reference in references[:_MAX_SHOWN])
    left = len(references) - _MAX_SHOWN
    return shown + (f", and {left} more" if left > 0 else "")


def beside_note(references: Sequence[str]) -> str:
    """Return the note about models beside the one that is scanned, with the command for each."""
    return f"not scanned, because the folder holds them beside the model: {commands(references)}"


def several_models(files: Files, names: Sequence[str]) -> str:
    """Return the message for a folder that holds several models, with the command for each.

    Args:
        files: the folder.
        names: the names of the weights files.
    """
    shown = ", ".join(map(printable, names[:_MAX_SHOWN])) + (", ..." if len(names) > _MAX_SHOWN else "")
    found = commands([reference_of(files, name) for name in first_parts(names)])
    return f"{files.place} holds several models ({shown}): name the file to scan: {found}"


def _quoted(reference: str) -> str:
    return shlex.quote(reference if reference.isprintable() else printable(reference))
