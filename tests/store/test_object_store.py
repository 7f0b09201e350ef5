"""Stores on object storage, against a real server with the API of S3: faults, errors, and how many requests reading costs."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from scanner import PoolOptions, scan
from scanner.cli.main import application
from scanner.errors import ScannerError, StoreError
from scanner.store import Store, files, open_store
from scanner.store.compaction import compact
from scanner.store.files import StoreFiles
from scanner.store.merging import merge
from scanner.store.removal import plan_removal, remove
from tests.engine.checkpoints import small

from .rows import Matrix, Pair, add_comparison, add_scan
from .s3 import LATE_SECONDS, Proxy, Request, bucket, s3, s3_server  # noqa: F401
from .test_compaction import rows
from .test_staging_scans import check_one_of_two, two_at_once

NO_GRACE = timedelta(0)
#: How long a server is gone; tried with a minute, too.
OUTAGE_SECONDS = float(os.environ.get("RMTSCAN_TEST_OUTAGE", "3"))


def verb(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        application()(list(arguments), prog_name="rmtscan")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def filled(url: str, count: int = 3) -> Store:
    store = open_store(url, create=True)
    for index in range(count):
        add_scan(store, f"s{index}", [Matrix()], model=f"org/m{index % 4}", hours=index, failed=["lost"][: index % 2])
    add_comparison(store, "p", [Pair()], scans=("s0", "s1"))
    return store


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    monkeypatch.setattr(files, "FIRST_PATIENCE", 0.2)


def test_faults_of_a_server_change_no_row(bucket: str, s3: Proxy, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    monkeypatch.setattr(files, "_FIRST_PAUSE", 0.01)
    undisturbed = rows(filled(str(tmp_path / "local")))
    chance = random.Random(1)
    faults = ["refuse", "fail", "lose", "repeat", "slow", "late", *[None] * 8]
    s3.fault = lambda request: chance.choice(faults)
    store = filled(f"{bucket}/results")
    assert rows(store) == undisturbed
    compact(store, grace=NO_GRACE)
    merge(store, open_store(str(tmp_path / "copy"), create=True))
    s3.fault = lambda request: None
    time.sleep(2 * LATE_SECONDS)
    assert rows(open_store(store.url)) == undisturbed
    assert rows(open_store(str(tmp_path / "copy"))) == undisturbed
    assert {found.state for found in store.verify()} == {"whole"}


@pytest.mark.parametrize("fault", ["refuse", "fail"])
def test_a_file_of_a_busy_server_is_not_missing(
    bucket: str,  # noqa: F811
    s3: Proxy,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr(files, "_FIRST_PAUSE", 0.01)
    there = StoreFiles(f"{bucket}/results")
    there.write_bytes("scans/one.parquet", b"content")
    s3.requests.clear()
    s3.fault = lambda request: fault if request.method == "HEAD" and request.number < 2 else None
    assert there.is_file("scans/one.parquet")
    assert not there.is_file("scans/two.parquet")


@pytest.mark.parametrize("fault", ["refuse", "fail", "lose"])
@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT", "DELETE"])
def test_compare_and_swap_is_repeated_while_a_server_is_busy(
    bucket: str,  # noqa: F811
    s3: Proxy,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    method: str,
) -> None:
    monkeypatch.setattr(files, "_FIRST_PAUSE", 0.01)
    there = StoreFiles(f"{bucket}/results")
    assert there.create("leases/one.json", b"1")
    failed: list[str] = []

    def once(request: Any) -> str | None:
        if request.method != method or len(failed) >= 6:  # botocore and s3fs repeat a request a few times themselves
            return None
        failed.append(request.method)
        return fault

    s3.fault = once
    assert there.swap("leases/one.json", b"1", b"2")
    assert there.read_bytes("leases/one.json") == b"2"
    assert not there.swap("leases/one.json", b"1", b"3")
    assert there.swap("leases/one.json", b"2", None)
    assert there.read_bytes("leases/one.json") is None
    assert failed


def test_a_commit_is_one_last_put(bucket: str, s3: Proxy) -> None:  # noqa: F811
    store = open_store(f"{bucket}/results", create=True)
    s3.requests.clear()
    add_scan(store, "one", [Matrix()], failed=["lost"])
    puts = [path.rpartition("/results/")[2].partition("?")[0] for method, path in s3.requests if method == "PUT"]
    assert puts[-1] == "scans/one.parquet"
    assert {"vectors/one.parquet", "matrices/one.parquet", "failures/one.parquet"} <= {*puts[:-1]}
    s3.requests.clear()
    filled(f"{bucket}/results")
    s3.requests.clear()
    compact(store, grace=NO_GRACE)
    kinds = [(method, path.rpartition("/results/")[2]) for method, path in s3.requests]
    commit = next(i for i, (method, path) in enumerate(kinds) if method == "PUT" and path.startswith("groups/scans-"))
    written = [i for i, (method, path) in enumerate(kinds) if method == "PUT" and path.startswith("vectors/compacted-")]
    removed = [i for i, (method, path) in enumerate(kinds) if method == "DELETE" and path.startswith("scans/")]
    assert max(written) < commit < min(removed)


def test_reading_a_compacted_store_costs_few_requests(bucket: str, s3: Proxy) -> None:  # noqa: F811
    store = filled(f"{bucket}/results", 20)
    compact(store, grace=NO_GRACE)
    s3.requests.clear()
    opened = open_store(store.url)
    assert opened.query("scans").num_rows == 20
    assert len(s3.requests) <= 10, s3.requests
    opened.sql("select count(*) from vectors")
    assert len(s3.requests) <= 25
    assert not [path for _, path in s3.requests if "pair" in path or "controls" in path or "experiments" in path]
    for query in ("layer_trend", "outliers", "fleet_overview"):
        opened.query(query)
    assert len(s3.requests) <= 50


CALLS: dict[str, Callable[[Store], object]] = {
    "open": lambda store: open_store(store.url),
    "create": lambda store: open_store(store.url, create=True),
    "query": lambda store: store.query("scans"),
    "sql": lambda store: store.sql("from vectors"),
    "scan_row": lambda store: store.scan_row("s1"),
    "vector_rows": lambda store: store.vector_rows("s1", ["k"]),
    "committed": lambda store: store.committed(),
    "problem": lambda store: store.problem("scans", "s1"),
    "verify": lambda store: store.verify(),
    "status": lambda store: (store.unfinished(), store.running()),
    "write": lambda store: add_scan(store, "new", [Matrix()]),
    "compact": lambda store: compact(store),
    "rm": lambda store: remove(store, plan_removal(store, ["s1"])),
}


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_gone_is_one_line_everywhere(bucket: str, s3: Proxy, tmp_path: Path) -> None:  # noqa: F811
    store = filled(f"{bucket}/results")
    other = open_store(str(tmp_path / "other"), create=True)
    store.sql("from vectors")
    for fault, words in (("refuse", "endpoint"), ("deny", "credentials"), ("fail", "")):
        s3.fault = lambda request, fault=fault: fault  # type: ignore[misc]
        for name, call in {**CALLS, "merge": lambda store: merge(store, other)}.items():
            store.close()
            with pytest.raises(StoreError) as caught:
                call(store)
            text = str(caught.value)
            assert "\n" not in text, name
            assert "Traceback" not in text
            assert words.lower() in text.lower(), (name, text)
    s3.fault = lambda request: None
    # In the middle of a statement: DuckDB reads through the same files.
    store.close()
    store.query("scans")
    s3.fault = lambda request: "refuse" if "/vectors/" in request.path else None
    with pytest.raises(StoreError, match="cannot be read") as caught:
        store.sql("from vectors")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("impatient")
def test_missing_credentials_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StoreError, match="credentials"):
        open_store(f"{bucket}/results")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_commands_work_on_an_object_store(bucket: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:  # noqa: F811
    url = filled(f"{bucket}/results").url
    capsys.readouterr()
    verbs = (
        ["models", "--store", url],
        ["status", "--store", url],
        ["sql", "select count(*) as n from vectors", "--store", url],
        ["query", "outliers", "--store", url],
        ["verify", url],
        ["compact", url, "--grace", "0"],
        ["verify", url],
        ["models", "--store", url],
        ["publish", url, "--to", str(tmp_path / "published")],
        ["rm", "org/m0", "--store", url, "--yes"],
    )
    for arguments in verbs:
        assert verb(*arguments) == 0, (arguments, capsys.readouterr().err)
    assert verb("report", "org/m1", "--store", url, "--output", str(tmp_path / "report.html")) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("local_ray")
def test_a_scan_waits_for_a_server_that_is_gone(bucket: str, s3: Proxy, tmp_path: Path) -> None:  # noqa: F811
    checkpoint = small(tmp_path / "model", layers=2)
    scan(str(checkpoint), store=str(tmp_path / "local"), pool=PoolOptions(workers=1))
    url = f"{bucket}/results"

    def cut(request: Request) -> str | None:
        if request.method == "PUT" and "/staging/" in request.path and not s3.gone and not healed:
            s3.gone = True
            threading.Timer(OUTAGE_SECONDS, heal).start()
            return "refuse"
        return None

    healed: list[float] = []

    def heal() -> None:
        healed.append(time.monotonic())
        s3.gone = False

    s3.fault = cut
    scan(str(checkpoint), store=url, pool=PoolOptions(workers=1))
    assert healed, "the server was never gone"
    columns = "tensor, role, k, singular_value, u_p, v_p"
    one, other = (
        open_store(place).sql(f"select {columns} from vectors order by all") for place in (url, str(tmp_path / "local"))
    )
    assert one.equals(other)


@pytest.mark.usefixtures("local_ray", "impatient")
def test_a_scan_that_gives_up_is_completed_by_the_same_call(bucket: str, s3: Proxy, tmp_path: Path) -> None:  # noqa: F811
    checkpoint = small(tmp_path / "model", layers=2)
    url = f"{bucket}/results"
    s3.fault = lambda request: "refuse" if request.method == "PUT" and "/scans/" in request.path else None
    with pytest.raises(ScannerError, match="cannot be written"):
        scan(str(checkpoint), store=url, pool=PoolOptions(workers=1))
    s3.fault = lambda request: None
    assert open_store(url).committed() == []
    scan(str(checkpoint), store=url, pool=PoolOptions(workers=1))
    assert len(open_store(url).committed()) == 1
    assert StoreFiles(url).folders("staging") == []


@pytest.mark.parametrize("moment", ["_write_largest", "_write_row"])
def test_two_writers_of_one_content_do_not_mix_their_files(bucket: str, moment: str) -> None:  # noqa: F811
    url = f"{bucket}/results"
    assert two_at_once(url, moment) == (True, False)
    check_one_of_two(open_store(url))
