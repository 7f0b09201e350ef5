"""A stdout that is closed, full or read in part, locales without UTF-8, narrow terminals, and Ctrl-C while a query runs."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scanner.errors import ConfigError, QueryError
from scanner.store import open_store
from tests.cli.conftest import Run, rmtscan  # noqa: F401 (a fixture)
from tests.store.rows import Matrix, add_scan

COMMAND = f"{sys.executable} -m scanner.cli.main"
MANY = "sql 'select * from range(100000)'"
ENDLESS = "select count(*) from range(1000000) a, range(1000000) b where (a.range * b.range) % 7 = 3"


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=folder,
        env=os.environ | {"RMTSCAN_STORE": str(folder / "store")} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    add_scan(open_store(str(folder / "store"), create=True), "one", [Matrix()])
    return folder


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
def test_a_closed_stdout_is_a_quiet_end(folder: Path, form: str) -> None:
    done = shell(f"{COMMAND} {MANY} --format {form} >&-", folder)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [f"{MANY} -f table", f"{MANY} -f csv", f"{MANY} -f json", "query --list", "--version"]
)
def test_a_full_stdout_is_one_line(folder: Path, arguments: str) -> None:
    done = shell(f"{COMMAND} {arguments} >/dev/full", folder)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("...")]
    assert line == "error: the output cannot be written to stdout: No space left on device"


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_reader_that_has_seen_enough_is_a_quiet_end(folder: Path, form: str) -> None:
    done = shell(f"{COMMAND} {MANY} --format {form} | head -n 1", folder)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_a_locale_without_utf_8_gets_escapes(folder: Path) -> None:
    done = shell(f"{COMMAND} sql 'select chr(233) as a, chr(26376) as b'", folder, LC_ALL="C", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "\\xe9" in done.stdout
    assert "\\u6708" in done.stdout


def test_a_terminal_of_20_columns_is_enough(folder: Path) -> None:
    for arguments in (MANY, "query --list", "scan --help"):
        done = shell(f"{COMMAND} {arguments}", folder, COLUMNS="20")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_ctrl_c_ends_a_query_within_a_second(folder: Path) -> None:
    command = [sys.executable, "-u", "-c", "from scanner.cli.main import main; print('up', flush=True); main()"]
    with subprocess.Popen(
        [*command, "sql", ENDLESS, "--store", str(folder / "store")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # DuckDB computes once its threads are there, beside those that numpy has started while it was imported.
        began = time.monotonic()
        while time.monotonic() - began < 40 and _cpu_seconds(process.pid) < 4.0:
            time.sleep(0.1)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
        assert time.monotonic() - sent < 3.0  # a second, on a machine with nothing else to do
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in errors


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_statement_that_takes_too_long_ends_and_the_store_goes_on(folder: Path) -> None:
    store = open_store(str(folder / "store"))
    began = time.monotonic()
    with pytest.raises(QueryError, match=r"has not ended within 0\.3 s: select fewer rows, or raise `timeout`"):
        store.sql(ENDLESS, timeout=0.3)
    assert time.monotonic() - began < 5
    assert store.sql("select 1", timeout=30).column(0).to_pylist() == [1]
    with pytest.raises(ConfigError, match="`timeout` must be a positive number of seconds, got -1"):
        store.sql("select 1", timeout=-1)


def test_an_interrupted_query_ends_in_this_process_too(folder: Path) -> None:
    store = open_store(str(folder / "store"))
    # A process that was started in the background of a shell ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            store.sql(ENDLESS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 5
    assert store.sql("select 1").column(0).to_pylist() == [1]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+cmd", "@SUM(A1)", "=HYPERLINK(0)"])
def test_texts_of_csv_are_no_formulas(rmtscan: Run, folder: Path, text: str) -> None:  # noqa: F811
    statement = f"select '{text}' as \"{text}\", -1.5 as number, 'a-b' as plain, -7 as whole"
    done = rmtscan("sql", statement, "--store", folder / "store", "--format", "csv")
    names, cells = csv.reader(io.StringIO(done.out.decode()))
    assert names == [f"'{text}", "number", "plain", "whole"]
    assert cells == [f"'{text}", "-1.5", "a-b", "-7"]


@pytest.mark.parametrize("code", [9, 13])
def test_texts_of_csv_begin_with_no_tab_or_return(rmtscan: Run, folder: Path, code: int) -> None:  # noqa: F811
    done = rmtscan("sql", f"select chr({code}) || '=1' as a", "--store", folder / "store", "--format", "csv")
    [_, [cell]] = csv.reader(io.StringIO(done.out.decode()))
    assert cell[:1] == "'"
    assert cell.isprintable()
