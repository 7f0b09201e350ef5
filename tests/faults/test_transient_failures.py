"""A failure that may pass is tried again by the next run, without `force`; the other matrices are not computed again."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import httpx2
import pytest

from scanner.engine.method import Method
from scanner.engine.scan import ScanWork
from scanner.engine.tasks import MatrixTask
from scanner.engine.work import Observer
from scanner.errors import CheckpointError, RateLimitedError
from scanner.store import Store, open_store
from tests.engine.checkpoints import small

from .here import run_here


def caused_by(cause: Exception) -> CheckpointError:
    error = CheckpointError("model.safetensors cannot be read")
    error.__cause__ = cause
    return error


TRANSIENT = {
    "connection": caused_by(ConnectionResetError("reset by peer")),
    "server": caused_by(httpx2.ReadTimeout("timed out")),
    "disk": caused_by(OSError(errno.EIO, "Input/output error")),
    "limit": RateLimitedError("too many requests"),
}
PERMANENT = {
    "content": CheckpointError("an unknown dtype"),
    "permission": caused_by(OSError(errno.EACCES, "Permission denied")),
    "value": ValueError("NaN"),
}


def scanned(
    reference: str, store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, fails: int = 2
) -> tuple[ScanWork, list[str]]:
    """Scan; reading fails for some matrices. Returns the names of the matrices that were computed."""
    work = ScanWork(store, Method(), Observer(), ensembles=())
    work.add(reference, force=False, download=False)
    ran: list[str] = []
    real = MatrixTask.run

    def run(task: MatrixTask, context: Any) -> Any:
        ran.append(task.name)
        with monkeypatch.context() as patch:
            if error is not None and len(ran) <= fails:

                def refuse(*_: object) -> None:
                    raise error

                patch.setitem(real.__globals__, "read_matrices", refuse)
            return real(task, context)

    with monkeypatch.context() as patch:
        patch.setattr(MatrixTask, "run", run)
        run_here(patch, work)
    return work, ran


@pytest.mark.parametrize("error", TRANSIENT.values(), ids=TRANSIENT)
def test_what_may_pass_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    reference = small(tmp_path / "model")
    store, whole = (open_store(str(tmp_path / name), create=True) for name in ("store", "whole"))
    _, every = scanned(reference, whole, monkeypatch)
    scanned(reference, store, monkeypatch, error)
    failures = store.sql("select * from failures").to_pylist()
    assert len(failures) == 2
    assert all(row["transient"] for row in failures)
    assert all("transient: the next scan tries it again" in row["message"] for row in failures)

    work, ran = scanned(reference, store, monkeypatch)
    assert len(every) == 12
    assert len(ran) == 2, "only what failed is computed again"
    assert [report.new for report in work.reports.values()] == [True]
    assert store.sql("select * from failures").num_rows == 0
    columns = "exclude (seconds, read_seconds, decompose_seconds, test_seconds)"
    for table, these in (("all_vectors", ""), ("all_matrices", columns)):
        query = f"select * {these} from {table} order by all"
        assert store.sql(query).equals(whole.sql(query))
    assert {found.state for found in store.verify()} == {"whole"}

    _, ran = scanned(reference, store, monkeypatch)
    assert ran == []


@pytest.mark.parametrize("error", PERMANENT.values(), ids=PERMANENT)
def test_what_cannot_pass_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    reference, store = small(tmp_path / "model"), open_store(str(tmp_path / "store"), create=True)
    scanned(reference, store, monkeypatch, error)
    failures = store.sql("select * from failures").to_pylist()
    assert [row["transient"] for row in failures] == [False, False]
    assert all("`force`" in row["message"] for row in failures)
    _, ran = scanned(reference, store, monkeypatch)
    assert ran == []
