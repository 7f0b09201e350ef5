"""Names of models that a user gives: the whole name, or a part of it that no other name has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from scanner.errors import AmbiguousError, QueryError
from scanner.store.checksums import printable

#: Candidates that an error names.
_MOST_NAMED = 8


def match_model(text: str, known: Iterable[str]) -> str:
    """Return the name that is meant.

    A name that is given as a whole wins. Otherwise the text must be part of exactly one name, in upper or lower case; a
    difference (`delta:BASE..TUNED`) is meant only if no model is, or the text begins with `delta:`.

    Args:
        text: the name, or a part of it.
        known: the names that there are.

    Raises:
        QueryError: no name has this part; the message lists candidates.
        AmbiguousError: several names have it; the message lists them.
    """
    names = sorted({*known})
    if text in names:
        return text
    found = _containing(text, [name for name in names if not name.startswith("delta:")]) or _containing(text, names)
    if len(found) == 1:
        return found[0]
    if found:
        raise AmbiguousError(f"{printable(text)!r} is part of {len(found)} names: choose one of {_listed(found)}")
    if not names:
        raise QueryError(f"there is no model {printable(text)!r}: the store has none")
    near = difflib.get_close_matches(text, names, n=_MOST_NAMED, cutoff=0.5)
    there = f"did you mean {_listed(near)}?" if near else f"the store has {_listed(names)}"
    raise QueryError(f"there is no model {printable(text)!r}: {there}")


def _containing(text: str, names: Iterable[str]) -> list[str]:
    part = text.casefold()
    return [name for name in names if part and part in name.casefold()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(printable, names[:_MOST_NAMED])) + more
