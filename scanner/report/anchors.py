"""URL fragments of a report: one for every section, role and matrix, made of names that stay the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_OTHER = re.compile(r"[^a-z0-9]+")
_MOST = 60


def slug(text: str) -> str:
    """Return letters, digits and `-` of a text; `x` if nothing is left."""
    return _OTHER.sub("-", text.lower()).strip("-")[:_MOST].strip("-") or "x"


class Anchors:
    """Fragments that were given out; none is given twice."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, *words: object) -> str:
        """Return a fragment made of words; a number is added if it is taken."""
        base = "-".join(slug(str(word)) for word in words if word is not None)
        found, number = base, 1
        while found in self._taken:
            number += 1
            found = f"{base}-{number}"
        self._taken.add(found)
        return found

    def matrix(self, key: str, row: Mapping[str, Any]) -> str:
        """Return the fragment of a matrix: `m0-layer-3-query`."""
        layer = row["tensor"] if row["layer"] is None else f"layer-{row['layer']}"
        expert = None if row["expert"] is None else f"expert-{row['expert']}"
        return self.new(key, row["stack"], layer, row["role"], row["module"], expert)
