"""One process at a time has the lease, whatever happens to the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from scanner.errors import StoreError
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


def held_by(tmp_path: Path, *, minutes_ago: float = 0.0, **changed: Any) -> StoreFiles:
    """A lease that another process has written, by the clock of the store."""
    files = StoreFiles(str(tmp_path))
    holder = {"owner": "0" * 32, "doing": "compacted", "host": "elsewhere", "pid": 1, "space": ""}
    times = {"since": "2026-01-01T00:00:00+00:00", "until": "2026-01-01T00:10:00+00:00"}
    files.create(PATH, json.dumps(holder | times | changed).encode())
    written = time.time() - 60 * minutes_ago
    os.utime(files.full(PATH), (written, written))
    return files


@pytest.mark.parametrize("until", ["2026-01-01T00:10:00+00:00", "2999-01-01T00:00:00+02:00"])
def test_a_lease_that_was_not_renewed_is_taken_over_at_once_whatever_the_clock_of_its_holder_says(
    tmp_path: Path, until: str
) -> None:
    files = held_by(tmp_path, minutes_ago=11, until=until)
    before = time.monotonic()
    with night(files) as held:
        held.check()
    assert time.monotonic() - before < 5
    assert [*(tmp_path / "leases").iterdir()] == []


@pytest.mark.parametrize("until", ["2026-01-01T00:10:00+00:00", "2999-01-01T00:00:00+02:00"])
@pytest.mark.parametrize(("minutes", "seconds"), [(9.0, 600.0), (30.0, 3600.0)])
def test_a_lease_that_was_renewed_holds_whatever_the_clock_of_its_holder_says(
    tmp_path: Path, until: str, minutes: float, seconds: float
) -> None:
    files = held_by(tmp_path, minutes_ago=minutes, until=until, seconds=seconds, host="else\x1b[31mwhere")
    before = files.read_bytes(PATH)
    # The length of a lease is that of its holder: this process asks for a minute.
    with pytest.raises(LeaseHeldError, match=r"else\?\[31mwhere .* again in \d+ s") as refused, night(files):
        pass
    left = int(str(refused.value).split()[-2])
    assert seconds - 60 * minutes - 30 < left <= seconds - 60 * minutes
    assert files.read_bytes(PATH) == before


class _Untimed(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A file system that does not tell when a file was written."""

    protocol = "untimed"

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {key: value for key, value in super().info(path, **options).items() if key != "created"}


@pytest.mark.parametrize(("minutes", "taken"), [(-1, True), (1, False)])
def test_the_clocks_of_the_machines_decide_where_the_store_has_none(minutes: float, taken: bool) -> None:
    fsspec.register_implementation("untimed", _Untimed, clobber=True)
    files = StoreFiles(f"untimed://{os.urandom(8).hex()}")
    times = {
        "since": "2026-01-01T00:00:00+00:00",
        "until": (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat(),
    }
    holder = {"owner": "0" * 32, "doing": "compacted", "host": "elsewhere", "pid": 1, "space": ""}
    files.create(PATH, json.dumps(holder | times).encode())
    try:
        with night(files):
            pass
    except LeaseHeldError:
        assert not taken
    else:
        assert taken


def test_the_lease_of_a_killed_process_of_this_machine_does_not_have_to_expire(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    process.start()
    process.join()
    files = held_by(tmp_path, until="2999-01-01T00:00:00+00:00", pid=process.pid, space=_space())
    with night(files):
        pass


def _lost_answers(files: StoreFiles, lost: Callable[[int], bool]) -> None:
    """Let the answers of some replacements be lost: they are written, and fail nevertheless."""
    plain, count = files.swap, iter(range(1_000_000))

    def swap(path: str, before: bytes, after: bytes | None) -> bool:
        swapped = plain(path, before, after)
        if lost(next(count)):
            raise StoreError("the connection was reset")
        return swapped

    files.swap = swap  # type: ignore[method-assign]


@pytest.mark.parametrize("lost", [lambda number: number == 0, lambda number: number % 2 == 0], ids=["one", "many"])
def test_a_holder_keeps_its_lease_if_the_answer_of_a_renewal_is_lost(
    tmp_path: Path, lost: Callable[[int], bool]
) -> None:
    files = StoreFiles(str(tmp_path))
    _lost_answers(files, lost)
    with night(files, timedelta(seconds=8)) as held:
        first = files.read_bytes(PATH)
        for _ in range(6):
            held._renew()
            held.check()
        assert files.read_bytes(PATH) != first
    other = StoreFiles(str(tmp_path))
    with night(other):
        pass


def test_a_lease_is_given_back_if_the_answer_of_the_last_renewal_was_lost(tmp_path: Path) -> None:
    files = StoreFiles(str(tmp_path))
    with night(files) as held:
        _lost_answers(files, lambda number: number == 0)
        held._renew()
    assert files.read_bytes(PATH) is None


def test_a_thread_and_a_check_renew_a_lease_at_the_same_time(tmp_path: Path) -> None:
    """As after a suspension of the machine: both find that the lease has expired."""
    for round in range(20):
        files = StoreFiles(str(tmp_path / str(round)))
        with night(files) as held:
            start = threading.Barrier(2)

            def renew(held: Lease = held, start: threading.Barrier = start) -> None:
                start.wait()
                held._renew()

            other = threading.Thread(target=renew)
            other.start()
            renew()
            other.join()
            held.check()


def test_an_interruption_does_not_wait_for_a_store_that_is_gone(tmp_path: Path) -> None:
    files, gone, started = StoreFiles(str(tmp_path)), threading.Event(), [0.0]

    def stuck(*_: Any) -> bool:
        gone.wait(60)
        return False

    def interrupted() -> None:
        with night(files):
            files.swap = stuck  # type: ignore[method-assign,assignment]
            started[0] = time.monotonic()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started[0] < 10
    gone.set()


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
