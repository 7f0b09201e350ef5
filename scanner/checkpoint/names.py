"""Untrusted names: checks for plain file names, and escapes for the terminal."""

from pathlib import PureWindowsPath

MAX_SHOWN = 200


def printable(name: str) -> str:
    """Return `name`, at most 200 characters of it, with control characters and bidi overrides escaped."""
    start = name[: MAX_SHOWN + 1]
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in start)
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 1] + "…"


def is_plain_name(name: str) -> bool:
    """Tell whether `name` is a file name and nothing else: no folder, no drive, no `..`."""
    # The rules of Windows cover every separator, and the name may have been written for any system.
    return name not in ("", ".", "..") and "\0" not in name and PureWindowsPath(name).name == name
