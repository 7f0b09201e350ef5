"""Which scans of a store are of an earlier method, from the rows of table `scans` alone: `rmtscan status` counts them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scanner.checkpoint import Selection
from scanner.engine.method import Method, scan_id
from scanner.errors import ScannerError
from scanner.rmt import vocabulary
from scanner.store import Store
from scanner.store.tables import json_object


def earlier_methods(store: Store) -> dict[str, tuple[int, Method]]:
    """Return the ids of scans of an earlier method whose content was not scanned with the current one.

    Returns:
        Id of a scan -> version of its method, and the same parameters with the current version.

    Raises:
        StoreError: the store cannot be read.
    """
    rows = store.sql("from scans").select(["scan_id", "identity", "method"]).to_pylist()
    committed = {row["scan_id"] for row in rows}
    found = {}
    for row in rows:
        parsed = json_object(row["method"])
        version = parsed.get("version")
        if type(version) is not int or version >= vocabulary.METHOD_VERSION or not row["identity"]:
            continue
        method = method_of(parsed)
        if method is not None and scan_id(row["identity"], method) not in committed:
            found[row["scan_id"]] = (version, method)
    return found


def method_of(parsed: Mapping[str, Any]) -> Method | None:
    """Return the method with the parameters of a stored one; None if it has others than this version knows."""
    try:
        lists = {name: tuple(parsed[name]) for name in ("only", "layers")}
        selection = Selection(embeddings=parsed["embeddings"], heads=parsed["heads"], **lists)
        method = Method(sigma=parsed["sigma"], null=parsed["null"], selection=selection)
    except (ValueError, TypeError, KeyError, ScannerError):
        return None
    ours, theirs = method.as_dict(), dict(parsed)
    for one in (ours, theirs):
        one.pop("version", None)
        one.pop("metrics", None)  # those of the extensions that are installed now
    return method if json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True) else None
