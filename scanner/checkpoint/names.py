"""Names that come from strangers: which of them are plain file names, and how they are shown on a terminal."""

from pathlib import PureWindowsPath

MAX_SHOWN = 200


def printable(name: str) -> str:
    """Return `name`, at most 200 characters of it, with control characters and bidi overrides escaped."""
    start = name[: MAX_SHOWN + 1]
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in start)
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 1] + "…"


def is_plain_name(name: str) -> bool:
    """Tell whether `name` is a file name and nothing else: no folder, no drive, no way up."""
    # The Windows rules know every separator; the names come from strangers and may have been written for any system.
    return name not in ("", ".", "..") and "\0" not in name and PureWindowsPath(name).name == name
