"""Values of stores for programs that read text: JSON types, and texts that neither a terminal nor a spreadsheet acts on.

Names in a store come from checkpoints, which are untrusted.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

#: First characters of a cell that spreadsheets take for a formula, or skip to find one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def escaped(text: str) -> str:
    """Escape control characters and what else steers a terminal; nothing is cut."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def inert(text: str) -> str:
    """Escape control characters, and put `'` before a text that a spreadsheet would run as a formula."""
    return ("'" if text.startswith(_FORMULA) else "") + escaped(text)


def as_json(value: Any) -> str:
    """Return a value as JSON in ASCII: all other characters and control characters are written as escapes."""
    return json.dumps(plain(value), default=str, allow_nan=False)


def plain(value: Any) -> Any:
    """Convert a value to JSON types: NaN and infinity to null, bytes to hexadecimal, decimals (sums of integers) to numbers."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
