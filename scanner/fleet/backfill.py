"""Backfill: scans of an earlier method, and computing them again with the current one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scanner.engine.method import Method
from scanner.engine.options import PoolOptions
from scanner.engine.report import ModelReport, ScanReport
from scanner.engine.scan import scan
from scanner.engine.work import Observer
from scanner.errors import ScannerError
from scanner.fleet.earlier import earlier_methods
from scanner.rmt.vocabulary import ENSEMBLES, Ensemble
from scanner.store import Store
from scanner.store.references import reference_of


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
    earlier = earlier_methods(store)
    found: list[Outdated] = []
    for row in store.query("scan_methods").to_pylist() if earlier else ():
        if row["scan_id"] not in earlier:
            continue
        version, method = earlier[row["scan_id"]]
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
