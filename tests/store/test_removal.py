"""Removal of results: what is removed, what becomes visible, and that nothing is removed without being asked for."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from scanner.cli.main import application
from scanner.errors import ScannerError
from scanner.store import SCHEMAS, Store, open_store
from scanner.store.compaction import compact
from scanner.store.removal import plan_removal, remove

from .rows import Matrix, Pair, add_comparison, add_scan, table


@pytest.fixture
def full(store: Store) -> Store:
    """Two scans of one revision, the later one of fewer matrices; an older revision; another model; comparisons; a run."""
    add_scan(store, "old", [Matrix(tensor="t0"), Matrix(tensor="t1")], model="org/m", revision="r2", hours=1)
    add_scan(store, "new", [Matrix(tensor="t0")], model="org/m", revision="r2", hours=2)
    add_scan(store, "before", [Matrix()], model="org/m", revision="r1", hours=0)
    add_scan(store, "other", [Matrix()], model="org/other", failed=["lost"])
    add_comparison(store, "p0", [Pair()], scans=("new", "other"), base="org/m", tuned="org/other")
    add_comparison(store, "p1", [Pair()], scans=("old", "other"), base="org/m", tuned="org/other", hours=1)
    run = table("experiments", [{"run_id": "r", "kind": "ablation", "model": "org/m"}])
    point = {"run_id": "r", "model": "org/m", "set": "none", "metric": "kl", "value": 0.0}
    store.write_rows("ablations", "r-none", table("ablations", [point]), method={})
    store.write_rows("ablations", "rr-none", table("ablations", [point | {"run_id": "rr"}]), method={})
    store.write_rows("experiments", "r", run, method={})
    place = {"model": "org/m", "tensor": "t0", "role": "query", "rows": 2, "cols": 2, "ensemble": "sign", "seed": 0}
    for scan_id in ("new", "other"):
        drawn = [{"scan_id": scan_id, **place, "k": k, "singular_value": 2.0 - k} for k in (0, 1)]
        store.write_matrix_control(table("matrix_controls", drawn), scan_id, "t0", "sign", 0)
    return store


def left(store: Store) -> list[str]:
    return sorted(open_store(store.url).sql("from scans")["scan_id"].to_pylist())


def test_the_beginning_of_several_revisions_is_refused(full: Store) -> None:
    add_scan(full, "whole", [Matrix()], model="org/m", revision="r", hours=3)
    add_scan(full, "a", [Matrix()], model="org/other", revision="5f3a0")
    add_scan(full, "b", [Matrix()], model="org/other", revision="5f3b1")
    with pytest.raises(
        ScannerError, match=r"^'org/other@5f3' is the beginning of 2 revisions: choose one of 5f3a0, 5f3b1$"
    ):
        plan_removal(full, ["org/other@5f3"])
    assert [one.result for one in plan_removal(full, ["org/other@5f3b"]).removed] == ["b"]
    assert sorted(one.result for one in plan_removal(full, ["org/m@r2"]).removed) == ["new", "old"]
    assert [one.result for one in plan_removal(full, ["org/m@r"]).removed] == ["whole"], "a whole revision means itself"


@pytest.mark.parametrize("compacted", [False, True])
def test_results_are_removed_and_what_becomes_visible_is_said(full: Store, compacted: bool) -> None:
    if compacted:
        compact(full, grace=timedelta(0))
    planned = plan_removal(full, ["new"])
    told = "\n".join(planned.consequences)
    assert "then shown from scan old" in told
    assert "comparison p0 refers to the removed scan new" in told
    assert {row["scan_id"] for row in full.sql("from matrices where tensor = 't0'").to_pylist()} == {"new"}
    assert {path.partition("/")[0] for path in planned.removed[0].files} >= {"matrix_controls"}
    remove(full, planned)
    assert left(full) == ["before", "old", "other"]
    assert {row["scan_id"] for row in full.sql("from matrix_controls").to_pylist()} == {"other"}
    assert full.sql("from matrices where model = 'org/m' and revision = 'r2'").num_rows == 2
    planned = plan_removal(full, ["org/m@r2", "p1", "r"])
    assert [(one.table, one.result) for one in planned.removed] == [
        ("scans", "old"),
        ("comparisons", "p1"),
        ("experiments", "r"),
    ]
    told = "\n".join(planned.consequences)
    assert "queries of org/m then show scan before (revision r1" in told
    assert "then show comparison p0" in told
    remove(full, planned)
    assert left(full) == ["before", "other"]
    assert full.sql("from pairs")["pair_id"].to_pylist() == ["p0"]
    assert full.sql("from ablations")["run_id"].to_pylist() == ["rr"]
    assert full.sql("from experiments").num_rows == 0
    planned = plan_removal(full, ["org/m"])
    assert "org/m has no scan any more" in planned.consequences
    remove(full, planned)
    compact(full, grace=timedelta(0))
    for folder in SCHEMAS:
        names = {path.stem for path in Path(full.url, folder).glob("*.parquet")}
        assert not names & {"old", "new", "before"}
    assert full.sql("select distinct scan_id from all_vectors")["scan_id"].to_pylist() == ["other"]
    assert full.sql("from failures").num_rows == 1
    assert not [found for found in full.verify() if found.state == "damaged"]


def test_the_committing_row_goes_first(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    original = type(full._files).remove
    monkeypatch.setattr(type(full._files), "remove", lambda self, path: (removed.append(path), original(self, path)))
    remove(full, plan_removal(full, ["other"]))
    assert next(path for path in removed if "lease" not in path) == "scans/other.parquet"
    assert {"matrices/other.parquet", "vectors/other.parquet", "failures/other.parquet"} <= {*removed}


def verb(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        application()(list(arguments), prog_name="rmtscan")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_asks_or_refuses(full: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ScannerError, match="did you mean 'org/m'"):
        plan_removal(full, ["org/mm"])
    assert verb("rm", "org/m", "--store", full.url) == 1
    assert "--yes" in capsys.readouterr().err
    assert verb("rm", "org/m", "--store", full.url, "--dry-run") == 0
    assert "results that would be: 3" in capsys.readouterr().err
    assert len(left(full)) == 4
    assert verb("rm", "org/m", "--store", full.url, "--yes", "--format", "json") == 0
    assert left(full) == ["other"]
