"""The models of a store as a site lists them: names, keys of their folders, and the results that their pages are made from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scanner.figures.selection import rows_of
from scanner.store import Store

_SQL = Path(__file__).resolve().parent / "sql"
_KEY = re.compile(r"[^a-z0-9]+")


class Pair(NamedTuple):
    """Two models that were compared."""

    base: str
    tuned: str
    ids: tuple[str, ...]
    """Its comparisons."""
    scans: tuple[str, ...]
    """Scans that were compared."""
    matrices: int
    """Number of pairs of matrices, over these comparisons."""
    gone: tuple[str, ...] = ()
    """Which of both have no scan, and so no page: a comparison keeps its rows when a scan is removed."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a store, and the results that its pages are made from."""

    name: str
    key: str
    """Name of its folder: letters, digits and `-`, unique and the same in every site."""
    difference: bool
    """Whether it is a difference `delta:BASE..TUNED`."""
    scans: tuple[str, ...]
    pairs: tuple[Pair, ...]
    """Comparisons that it belongs to."""
    matrices: int
    """Number of matrices and slices, over these scans."""
    triplets: int
    """Number of singular triplets, over these scans."""


def key_of(name: str) -> str:
    """Return the name of the folder of a model: a readable part, and a hash, so that no two names share one."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    readable = _KEY.sub("-", name.lower()).strip("-")[-48:].strip("-")
    return f"{readable}-{digest}" if readable else digest


def models_of(store: Store) -> list[Model]:
    """Return the models of a store, differences last, with the results that each is made from."""
    found = rows_of(store, _SQL / "models.sql")
    scanned = {row["model"] for row in found}
    compared: dict[str, list[Pair]] = {}
    for row in rows_of(store, _SQL / "comparisons.sql"):
        base, tuned = row["base_model"], row["tuned_model"]
        gone = tuple(name for name in (base, tuned) if name not in scanned)
        pair = Pair(base, tuned, tuple(row["pairs"]), tuple(row["scans"]), row["matrices"] or 0, gone)
        for name in dict.fromkeys((pair.base, pair.tuned)):
            compared.setdefault(name, []).append(pair)
    return [
        Model(
            name=row["model"],
            key=key_of(row["model"]),
            difference=row["difference"],
            scans=tuple(row["scans"]),
            pairs=tuple(compared.get(row["model"], ())),
            matrices=row["matrices"] or 0,
            triplets=row["triplets"] or 0,
        )
        for row in found
    ]
