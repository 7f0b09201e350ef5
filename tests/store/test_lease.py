"""One process at a time has the lease, whatever happens to the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from scanner.store.files import StoreFiles
from scanner.store.lease import Lease, LeaseHeldError, _space, lease

MINUTE = timedelta(minutes=1)
PATH = "leases/nightly.json"


def night(files: StoreFiles, length: timedelta = MINUTE) -> AbstractContextManager[Lease]:
    return lease(files, "nightly", doing="scanned for the night", length=length)


def test_a_second_lease_is_refused_and_the_end_gives_it_back(tmp_path: Path) -> None:
    files = StoreFiles(str(tmp_path))
    with (
        night(files),
        pytest.raises(LeaseHeldError, match=f"is being scanned for the night by process {os.getpid()} on .* since 20"),
        night(files),
    ):
        pass
    assert files.read_bytes(PATH) is None
    with night(files) as held:
        held.check()


def held_by(tmp_path: Path, **changed: Any) -> StoreFiles:
    files = StoreFiles(str(tmp_path))
    holder = {"owner": "0" * 32, "doing": "compacted", "host": "elsewhere", "pid": 1, "space": ""}
    times = {"since": "2026-01-01T00:00:00+00:00", "until": "2026-01-01T00:10:00+00:00"}
    files.create(PATH, json.dumps(holder | times | changed).encode())
    return files


def test_an_expired_lease_is_taken_over(tmp_path: Path) -> None:
    files = held_by(tmp_path)
    with night(files) as held:
        held.check()


@pytest.mark.parametrize("until", ["2999-01-01T00:00:00+00:00", "2999-01-01T00:00:00+02:00"])
def test_a_lease_of_another_machine_holds_until_it_expires(tmp_path: Path, until: str) -> None:
    files = held_by(tmp_path, until=until, host="else\x1b[31mwhere")
    with pytest.raises(LeaseHeldError, match=r"else\?\[31mwhere"), night(files):
        pass


def test_the_lease_of_a_killed_process_of_this_machine_does_not_have_to_expire(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    process.start()
    process.join()
    files = held_by(tmp_path, until="2999-01-01T00:00:00+00:00", pid=process.pid, space=_space())
    with night(files):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"owner": 1}', b"[" * 100_000])
def test_what_is_no_lease_is_replaced(tmp_path: Path, content: bytes) -> None:
    files = StoreFiles(str(tmp_path))
    files.create(PATH, content)
    with night(files):
        pass


def test_a_lease_is_renewed_while_its_holder_runs(tmp_path: Path) -> None:
    files = StoreFiles(str(tmp_path))
    with night(files, timedelta(seconds=1)) as held:
        first = files.read_bytes(PATH)
        limit = time.monotonic() + 20
        while files.read_bytes(PATH) == first and time.monotonic() < limit:
            time.sleep(0.05)
        assert files.read_bytes(PATH) != first
        held.check()


def test_a_holder_notices_that_another_process_has_its_lease(tmp_path: Path) -> None:
    files = StoreFiles(str(tmp_path))
    with night(files, timedelta(seconds=0.4)) as held:
        files.write_bytes(PATH, b"another")
        time.sleep(0.5)
        with pytest.raises(LeaseHeldError, match="this process has lost"):
            held.check()
    assert files.read_bytes(PATH) == b"another"


def _race(folder: str, number: int, start: Any, won: Any) -> None:
    files = StoreFiles(folder)
    start.wait()
    if files.create("leases/race", str(number).encode()):
        won.put(number)
    start.wait()
    if files.swap("leases/expired", b"old", str(number).encode()):
        won.put(100 + number)
    won.close()
    won.join_thread()
    os._exit(0)  # without the end of the libraries of the parent


def test_of_processes_that_race_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, won = context.Barrier(8), context.Queue()
    StoreFiles(str(tmp_path)).create("leases/expired", b"old")
    processes = [context.Process(target=_race, args=(str(tmp_path), n, start, won)) for n in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    created, swapped = sorted([won.get(timeout=10), won.get(timeout=10)])
    assert won.empty()
    assert (tmp_path / "leases" / "race").read_text() == str(created)
    assert (tmp_path / "leases" / "expired").read_text() == str(swapped - 100)


def test_create_and_swap_on_another_file_system(memory_url: str) -> None:
    files = StoreFiles(memory_url)
    assert files.create("leases/x", b"one")
    assert not files.create("leases/x", b"two")
    assert files.create("leases/x", b"one")  # repeated after a lost answer
    assert not files.swap("leases/x", b"two", b"three")
    assert files.swap("leases/x", b"one", b"three")
    assert files.read_bytes("leases/x") == b"three"
    assert files.swap("leases/x", b"three", None)
    assert not files.swap("leases/x", b"three", b"four")
