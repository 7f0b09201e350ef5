"""Which scans of a store are of an earlier method, from the rows of table `scans` alone: `rmtscan status` counts them.

The method of a scan is earlier if its version is, or if the scanner that made it did not know a parameter that now has another
default than what it did: the scale null. A scan of a later scanner that was asked for `--scale none` is up to date.
"""

from __future__ import annotations

import re
from dataclasses import replace

from scanner.engine.method import Method, method_of, scan_id
from scanner.rmt import vocabulary
from scanner.store import Store
from scanner.store.tables import json_object

#: The first version of the scanner with a scale null (`since` of `Method.scale`).
_SCALE_SINCE = (0, 2)


def earlier_methods(store: Store) -> dict[str, tuple[int, Method]]:
    """Return the ids of scans of an earlier method whose content was not scanned with the current one.

    Returns:
        Id of a scan -> version of its method, and the same parameters in the current version, with the default of those that its
        scanner did not know.

    Raises:
        StoreError: the store cannot be read.
    """
    rows = store.sql("from scans").select(["scan_id", "identity", "method", "scanner_version"]).to_pylist()
    committed = {row["scan_id"] for row in rows}
    found = {}
    for row in rows:
        parsed = json_object(row["method"])
        version = parsed.get("version")
        if type(version) is not int or not row["identity"]:
            continue
        unaware = "scale" not in parsed and _is_before(row["scanner_version"], _SCALE_SINCE)
        if version >= vocabulary.METHOD_VERSION and not unaware:
            continue
        method = method_of(parsed)
        if method is not None and unaware:
            method = replace(method, scale="none" if method.values_only else Method().scale, metrics=Method().metrics)
        if method is not None and scan_id(row["identity"], method) not in committed:
            found[row["scan_id"]] = (version, method)
    return found


def _is_before(version: object, other: tuple[int, int]) -> bool:
    """Whether a version of the scanner is before another; one that cannot be read is taken to be."""
    found = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return found is None or (int(found[1]), int(found[2])) < other
