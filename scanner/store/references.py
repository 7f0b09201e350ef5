"""From the stored row of a scan back to the reference that opens its checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scanner.errors import ScannerError

if TYPE_CHECKING:
    from scanner.store.store import Store

DIFFERENCE = "delta:"
"""Start of the reference of a difference: `delta:BASE..TUNED`."""


def scans_of(store: Store, model: str) -> list[dict[str, Any]]:
    """Return the rows of table `scans` of a model by its name, the newest first."""
    known = store.query("scans").select(["model", "scan_id"]).to_pylist()
    rows = (store.scan_row(row["scan_id"]) for row in known if row["model"] == model)
    return [row for row in rows if row is not None]


def reference_of(store: Store, scan: Mapping[str, Any]) -> str:
    """Return the reference that opens the checkpoint of a scan again.

    This is its source, and for a difference `delta:BASE..TUNED` with the sources of both sides. The row of a difference
    contains the source of the tuned checkpoint and the name of the base; the source of the base is that of its own scan.

    Args:
        store: where the scan is.
        scan: a row of table `scans`.

    Raises:
        ScannerError: the base of a difference was not scanned.
    """
    model, source, base_model = (str(scan[name] or "") for name in ("model", "source", "base_model"))
    if not model.startswith(DIFFERENCE) or source.startswith(DIFFERENCE):
        return source
    bases = [base for base in scans_of(store, base_model) if base["source"]]
    if not bases:
        raise ScannerError(
            f"the store does not say where {base_model!r} is, which is subtracted in {model!r}: scan it too"
        )
    tuned = [other["identity"] for other in scans_of(store, model.removeprefix(f"{DIFFERENCE}{base_model}.."))]
    # Several revisions or folders may have the same name: prefer the one that was subtracted.
    same = [base for base in bases if any(_identity(base["identity"], other) == scan["identity"] for other in tuned)]
    return f"{DIFFERENCE}{reference_of(store, (same or bases)[0])}..{source}"


def _identity(base: str | None, tuned: str | None) -> str:
    """Return the identity of a difference, as `scanner.checkpoint.differences` makes it."""
    return hashlib.sha256(f"delta {base} {tuned}".encode()).hexdigest()
