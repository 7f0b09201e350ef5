"""Names in a store that steer terminals, spreadsheets, Markdown or DuckDB: no output acts on them."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import markdown
import openpyxl
import pytest
from wcwidth import wcswidth

from scanner.store import Store, open_store
from tests.cli.conftest import Run, rmtscan  # noqa: F401 (a fixture)
from tests.store.rows import Matrix, add_scan

NAMES = {
    "formula": '=cmd|"/c calc"!A1',
    "escape": "\x1b[2J\x1b]0;title\x07name",
    "c1": "name\x9b2J\x85",
    "bidi": "a\u202egpj.exe\u2066b",
    "lines": "first\nsecond\r\n\tthird\u2028",
    "long": "x" * 10_000,
    "wide": "\u6f22" * 200,
    "markup": "<script>alert(1)</script>[red]\"'`|",
    "markdown": "[link](javascript:alert(1)) <img src=x onerror=alert(1)> | pipe",
    "sql": "'; DROP TABLE matrices; --",
}


@pytest.fixture(scope="module", params=NAMES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """A store in which everything has the name; it is only read."""
    name = NAMES[request.param]
    made = open_store(str(tmp_path_factory.mktemp("names") / "store"), create=True)
    rows = [Matrix(tensor=name, stack=name, role=name), Matrix(tensor="plain", layer=1)]
    add_scan(made, "a", rows, model=name, revision=name, failed=[name])
    return made, name


def test_terminals_get_lines_that_fit_and_nothing_that_steers_them(
    rmtscan: Run,  # noqa: F811
    store: tuple[Store, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, _ = store
    monkeypatch.setenv("COLUMNS", "80")
    for words in (
        ["models"],
        ["status"],
        ["query", "outliers"],
        ["query", "failures_by_reason"],
        ["query", "most_learned"],
        ["sql", "select * from matrices"],
        ["sql", "select tensor from failures"],
        ["verify", "--all"],
        ["rm", "a", "--dry-run"],
    ):
        told = rmtscan(*words, "--store", made.url)
        lines = told.out.decode().splitlines()
        assert told.status == 0, words
        assert all(line.isprintable() for line in [*lines, *told.err.splitlines()]), words
        assert max(map(wcswidth, lines)) <= 80, words


def test_the_screen_of_a_model_is_harmless_and_its_commands_name_the_model(
    rmtscan: Run,  # noqa: F811
    store: tuple[Store, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, _ = store
    monkeypatch.setenv("COLUMNS", "80")
    told = rmtscan("show", "--store", made.url)
    lines = told.out.decode().splitlines()
    assert (told.status, all(line.isprintable() for line in lines)) == (0, True)
    assert max(map(wcswidth, lines[: lines.index("Next")])) <= 80


@pytest.mark.parametrize("suffix", ["csv", "json", "xlsx"])
def test_files_hold_the_name_as_text(
    rmtscan: Run,  # noqa: F811
    store: tuple[Store, str],
    tmp_path: Path,
    suffix: str,
) -> None:
    made, name = store
    file = tmp_path / f"answer.{suffix}"
    told = rmtscan("sql", "select tensor from matrices where tensor <> 'plain'", "-o", file, "--store", made.url)
    assert told.status == 0
    if suffix == "json":
        assert json.loads(file.read_bytes()) == [{"tensor": name}]
        assert file.read_bytes().isascii()
        return
    if suffix == "csv":
        _, [found] = csv.reader(io.StringIO(file.read_text("utf-8"), newline=""))
    else:
        [cell] = openpyxl.load_workbook(file)["rows"]["A"][1:]
        assert (cell.data_type, cell.hyperlink) == ("s", None)
        found = cell.value
    assert found.isprintable()
    assert found[0] not in "=+-@\t\r"
    assert (found == name) == (name.isprintable() and not name.startswith("="))
    if suffix == "csv":
        assert rmtscan(
            "sql", "select tensor from matrices where tensor <> 'plain'", "-f", "csv", "--store", made.url
        ).out == (file.read_bytes()), "stdout and the file are the same bytes"


def test_a_duckdb_file_holds_the_name_and_a_card_shows_it_as_text(
    rmtscan: Run,  # noqa: F811
    store: tuple[Store, str],
    tmp_path: Path,
) -> None:
    made, name = store
    assert rmtscan("export", "duckdb", "-o", tmp_path / "x.duckdb", "--store", made.url).status == 0
    with duckdb.connect(str(tmp_path / "x.duckdb"), read_only=True) as opened:
        assert opened.execute("select distinct model from matrices").fetchall() == [(name,)]
    told = rmtscan("export", "card", name, "--store", made.url)
    if told.status:  # a name with a NUL or a path that is too long cannot be an argument
        told = rmtscan("export", "card", made.query("scans")["model"][0].as_py()[:50], "--store", made.url)
    text = told.out.decode()
    assert told.status == 0
    assert all(line.isprintable() for line in text.splitlines())
    found = Tags()
    found.feed(markdown.markdown(text, extensions=["tables"]))
    assert {*found.tags} <= {"h2", "p", "em", "img", "table", "thead", "tbody", "tr", "th", "td", "br"}
    assert [url.partition("/badge/")[0] for url in found.images] == ["https://img.shields.io"]


class Tags(HTMLParser):
    """The tags of a page, and the addresses of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.images += [value or "" for name, value in attrs if name == "src"]
