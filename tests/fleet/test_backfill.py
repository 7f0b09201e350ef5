"""Scans of an earlier method: which they are, and what they are computed with again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scanner.checkpoint import Selection
from scanner.engine.method import Method, scan_id
from scanner.engine.report import ScanReport
from scanner.fleet.backfill import outdated_scans, upgrade
from scanner.store import Store, open_store
from tests.store.rows import Matrix, scan_values


def add(store: Store, identity: str, method: Method, *, scanner: str, version: int = 1) -> str:
    """Commit a scan as a version of the scanner did."""
    parameters = method.as_dict() | {"version": version}
    own = scan_id(identity, method) if version == 1 else f"v{version}-{identity}"
    writer = store.writer(own, method=parameters, model="org/m")
    writer.stage("m", *Matrix().tables(own, "org/m", "r1"))
    values: dict[str, Any] = {
        "identity": identity,
        "source": f"hf://org/m@{identity}",
        "method": json.dumps(parameters),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scanner.store.staging.__version__", scanner)
        writer.commit(scan_values(**values))
    return own


def test_a_scan_of_a_version_without_a_scale_null_is_computed_again_with_it(store: Store) -> None:
    heads = Selection(heads=True)
    old = add(store, "a", Method(sigma="std", scale="none", metrics=("none",), selection=heads), scanner="0.1.0")
    add(store, "b", Method(scale="none"), scanner="0.2.0")  # asked for
    add(store, "c", Method(), scanner="0.2.0")
    add(store, "d", Method(scale="none"), scanner="0.1.3")
    add(store, "d", Method(), scanner="0.2.0")  # its successor
    older = add(store, "e", Method(scale="total"), scanner="0.2.0", version=0)
    store = open_store(store.url)
    found = {one.scan_id: one for one in outdated_scans(store)}
    assert {*found} == {old, older}
    assert found[old].method == Method(sigma="std", scale="robust", selection=heads)
    assert found[older].method == Method(scale="total")
    asked: list[tuple[list[str], Method, int]] = []

    def call(references: list[str], *, method: Method, draws: int, **how: object) -> ScanReport:
        asked.append((references, method, draws))
        return ScanReport(store=store.url, models=())

    upgrade(store, draws=3, call=call)
    assert sorted(asked, key=lambda one: one[0]) == [
        (["hf://org/m@a"], found[old].method, 3),
        (["hf://org/m@e"], found[older].method, 3),
    ]


@pytest.mark.parametrize("scanner", ["", "unknown"])
def test_a_version_that_cannot_be_read_is_taken_for_an_earlier_one(store: Store, scanner: str) -> None:
    own = add(store, "a", Method(scale="none"), scanner=scanner)
    assert [one.scan_id for one in outdated_scans(open_store(store.url))] == [own]
