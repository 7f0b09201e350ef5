"""Backfill: scans of an earlier method, and computing them again with the current one.

The method of a scan is earlier if its version is, or if the scanner that made it did not know a parameter that now has another
default than what it did: the scale null. A scan of a later scanner that was asked for `--scale none` is up to date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scanner.checkpoint import Selection
from scanner.engine.method import Method, scan_id
from scanner.engine.options import PoolOptions
from scanner.engine.scan import ModelReport, ScanReport, scan
from scanner.engine.work import Observer
from scanner.errors import ScannerError
from scanner.rmt.vocabulary import ENSEMBLES, Ensemble
from scanner.store import Store
from scanner.store.references import reference_of
from scanner.store.tables import json_object

#: The first version of the scanner with a scale null (`since` of `Method.scale`).
_SCALE_SINCE = (0, 2)


@dataclass(frozen=True, kw_only=True)
class Outdated:
    """A scan of an earlier method that has no successor yet."""

    scan_id: str
    model: str
    reference: str
    """Where its checkpoint was; empty if the store does not say."""
    method: Method
    """The same parameters, and the default of those that its scanner did not know, in the current version of the method."""
    version: int
    """Version of the method of the scan."""
    parameters: int = 0
    bytes: int | None = None
    finished_at: Any = None


def outdated_scans(store: Store) -> list[Outdated]:
    """Return the scans of an earlier method whose content was not scanned with the current one, the newest first.

    Raises:
        StoreError: the store cannot be read.
    """
    committed, current = {*store.committed()}, Method().as_dict()["version"]
    found: list[Outdated] = []
    for row in store.query("scan_methods").to_pylist():
        parsed = json_object(row["method"])
        version, method = parsed.get("version"), method_of(parsed)
        if type(version) is not int or method is None or not row["identity"]:
            continue
        unaware = "scale" not in parsed and _is_before(row["scanner_version"], _SCALE_SINCE)
        if version >= current and not unaware:
            continue
        if unaware:
            method = replace(method, scale=Method().scale)
        if scan_id(row["identity"], method) in committed:
            continue
        try:
            reference = reference_of(store, row)
        except ScannerError:
            reference = ""
        found.append(
            Outdated(
                scan_id=row["scan_id"],
                model=row["model"],
                reference=reference,
                method=method,
                version=version,
                parameters=row["parameters"] or 0,
                bytes=row["bytes"],
                finished_at=row["finished_at"],
            )
        )
    return found


def _is_before(version: object, other: tuple[int, int]) -> bool:
    """Whether a version of the scanner is before another; one that cannot be read is taken to be."""
    found = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return found is None or (int(found[1]), int(found[2])) < other


def method_of(parsed: Mapping[str, Any]) -> Method | None:
    """Return the method with the parameters of a stored one; None if it has others than this version knows."""
    try:
        lists = {name: tuple(parsed[name]) for name in ("only", "layers")}
        products = parsed.get("products", False)
        selection = Selection(embeddings=parsed["embeddings"], heads=parsed["heads"], products=products, **lists)
        # A scan without a scale null has the parameters of scanners that knew none.
        scale, head_mass = parsed.get("scale", "none"), parsed.get("head_mass", False)
        method = Method(
            sigma=parsed["sigma"], null=parsed["null"], scale=scale, head_mass=head_mass, selection=selection
        )
    except (ValueError, TypeError, KeyError, ScannerError):
        return None
    ours, theirs = method.as_dict(), dict(parsed)
    for one in (ours, theirs):
        one.pop("version", None)
        one.pop("metrics", None)  # those of the extensions that are installed now
    return method if json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True) else None


def upgrade(
    store: Store,
    scans: Sequence[Outdated] | None = None,
    *,
    ensembles: Sequence[Ensemble] = ENSEMBLES,
    draws: int = 1,
    pool: PoolOptions | None = None,
    download: bool = False,
    observer: Observer | None = None,
    call: Callable[..., ScanReport] = scan,
) -> ScanReport:
    """Compute scans of an earlier method again, each as its `Outdated.method` says.

    The earlier results stay in the store. A checkpoint that cannot be opened anymore has its error in the report.

    Args:
        store: the store.
        scans: some of `outdated_scans`; None: all of them.
        ensembles: as for `scan`.
        draws: as for `scan`.
        pool: as for `scan`.
        download: as for `scan`.
        observer: receives the progress.
        call: what scans.

    Raises:
        ScannerError: nothing can continue, as for `scan`.
        KeyboardInterrupt: interrupted; the same call resumes.
    """
    wanted = outdated_scans(store) if scans is None else scans
    models: list[ModelReport] = [
        ModelReport(
            reference=one.model,
            error=ScannerError(f"the store does not say where the checkpoint of {one.model!r} is: scan it by its path"),
        )
        for one in wanted
        if not one.reference
    ]
    groups: dict[str, list[Outdated]] = {}
    for one in wanted:
        if one.reference:
            groups.setdefault(json.dumps(one.method.as_dict(), sort_keys=True), []).append(one)
    for group in groups.values():
        references = list(dict.fromkeys(one.reference for one in group))
        report = call(
            references,
            store=store.url,
            method=group[0].method,
            ensembles=ensembles,
            draws=draws,
            pool=pool,
            download=download,
            observer=observer,
        )
        models += report.models
    return ScanReport(store=store.url, models=tuple(models))
