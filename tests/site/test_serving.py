"""The server of a site: byte ranges, no way out of the folder, no other host names, and a site that follows its store."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from scanner.errors import StoreError
from scanner.site import serving
from scanner.site.models import key_of
from scanner.store import open_store
from tests.store.rows import Matrix, add_scan, control

ROOT = Path(__file__).parent.parent.parent


def ask(address: str, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


def test_a_range_of_a_file_is_these_bytes_and_no_others(address: str, folder: Path) -> None:
    [path] = (folder / "models" / key_of("org/base")).glob("vectors-*.bin")
    status, content, headers = ask(address, f"/{path.relative_to(folder)}", Range="bytes=96-191")
    assert (status, content) == (206, path.read_bytes()[96:192])
    assert headers["content-range"] == f"bytes 96-191/{path.stat().st_size}"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/../store/scans/scan0.parquet", "/%2e%2e/store", "/assets/../../store", "//etc/passwd"]
)
def test_nothing_outside_of_the_folder_is_served(address: str, path: str) -> None:
    assert ask(address, path)[0] in (403, 404)


def test_other_host_names_are_refused(address: str) -> None:
    assert ask(address, "/", Host="evil.example")[0] == 403
    assert ask(address, "/", Host="localhost:1")[0] == 200


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT])
def test_a_served_site_follows_its_store(tmp_path: Path, ends: signal.Signals) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    add_scan(store, "a", [Matrix()], model="first")
    command = [sys.executable, "-m", "scanner.cli.main", "serve", store.url, "--port", "0", "--interval", "0.2"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "http://" in line)
            address = line[line.index("http://") :].split()[0]

            def models() -> list[str]:
                with urllib.request.urlopen(f"{address}index.json", timeout=30) as response:
                    return [one["name"] for one in json.load(response)["models"]]

            assert models() == ["first"]
            add_scan(store, "b", [Matrix()], model="second")
            end = time.monotonic() + 60
            while models() != ["first", "second"]:
                assert time.monotonic() < end, "the site does not follow its store"
                time.sleep(0.1)
        finally:
            server.send_signal(ends)
            assert server.wait(30) == 0
    assert not [path for path in temporary.iterdir() if path.name.startswith("rmtscan-site-")]


def test_a_server_that_ends_stops_writing_and_closes_the_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    for name in "abc":
        add_scan(store, name, [Matrix()], model=name)
    ended = threading.Event()
    told: list[str] = []

    def tell(model: str) -> None:
        told.append(model)
        ended.set()  # while the first model is written

    assert serving._write(store.url, str(tmp_path / "site"), tell, ended) is None
    assert told == ["a (1 of 3)"]
    assert not (tmp_path / "site" / "index.html").exists()
    whole = serving._write(store.url, str(tmp_path / "site"), lambda _: None)
    assert whole is not None
    assert whole.models == 3


class _Done(Exception):
    """The last model is being written."""


def test_what_changes_while_the_first_site_is_written_is_not_missed_and_problems_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    add_scan(store, "a", [Matrix()], model="first")
    known, told = serving._state(store.url), list[str]()
    state, moments = serving._state, iter([StoreError("gone"), StoreError("gone"), StoreError("away")])
    add_scan(store, "b", [Matrix()], model="second")  # as if that was between the state and the end of writing

    def unsteady(url: str) -> str:
        for error in moments:
            raise error
        return state(url)

    monkeypatch.setattr(serving, "_state", unsteady)

    async def follow() -> None:
        def progress(model: str) -> None:
            told.append(model)
            if model.startswith("second"):
                raise _Done

        with contextlib.suppress(_Done):
            await asyncio.wait_for(
                serving._keep_current(store.url, tmp_path / "site", 0.01, progress, told.append, known), 60
            )

    asyncio.run(follow())
    assert told == [
        "the store could not be read: gone",
        "the store could not be read: away",
        "first (1 of 2)",
        "second (2 of 2)",
    ]


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_ended_while_it_writes_ends_without_complaints(tmp_path: Path, ends: signal.Signals) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    for number in range(30):
        add_scan(store, f"s{number}", [Matrix(layer=layer) for layer in range(3)], model=f"model-{number}")
    command = [sys.executable, "-m", "scanner.cli.main", "serve", store.url, "--port", "0", "--interval", "0.05"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as server:
        try:
            assert server.stderr is not None
            assert any("http://" in line for line in server.stderr)
            [folder] = tmp_path.glob("rmtscan-site-*")
            before = {path.name for path in folder.glob("models/*/vectors-*.bin")}
            # A new control changes the state of every model.
            values: dict[str, list[float | None]] = {"u_p": [0.5] * 4, "v_p": [0.5] * 4}
            made = control(4, 4, singular_values=[4.0, 3.0, 2.0, 1.0], u_p=values["u_p"], v_p=values["v_p"])
            store.write_control(made, 4, 4, "gaussian", 0)
            end = time.monotonic() + 60
            while {path.name for path in folder.glob("models/*/vectors-*.bin")} == before:
                assert time.monotonic() < end, "the site is not written again"
                time.sleep(0.005)
        finally:
            server.send_signal(ends)
            complaints = server.stderr.read() if server.stderr is not None else ""
            assert server.wait(60) == 0
    assert complaints == ""
    assert not [*tmp_path.glob("rmtscan-site-*")]
