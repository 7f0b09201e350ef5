"""Tables in a terminal: no line is wider, no number is cut, names lose their middle, and what is left out is said."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcswidth

from scanner.cli.output import write
from scanner.cli.progress import waiting
from scanner.cli.tables import View, draw, elide, elided, view_of
from scanner.figures import all_figures
from scanner.store import Store, open_store
from scanner.store.queries import Query, Shown, load_queries
from tests.fixtures.store import unpack
from tests.store.rows import Matrix, Pair, add_comparison, add_scan

from .conftest import Run

QUERIES = load_queries()
HOSTILE = "org/\x1b[31mred\x1b]0;title\x07\u202e\n\u200b模型🙂-" + "x" * 300 + "-end"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The store of an earlier version, with scans, comparisons, every kind of experiment, and unfinished scans."""
    return str(unpack(tmp_path_factory.mktemp("tables")) / "store")


@pytest.fixture(scope="module")
def opened(real: str) -> Store:
    return open_store(real)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = open_store(str(tmp_path_factory.mktemp("hostile") / "store"), create=True)
    for number, name in enumerate((HOSTILE, HOSTILE.replace("end", "other"), "=1+1\t\r")):
        matrices = [Matrix(tensor=f"{name}.{layer}", layer=layer, u_p=(1e-9, 0.5, 0.25, 1.0)) for layer in range(3)]
        add_scan(made, f"s{number}", matrices, model=name, revision=name, failed=[name], hours=number)
    add_comparison(made, "pair", [Pair(tensor=name) for name in (HOSTILE, "b")], base=HOSTILE, tuned="\x1b[2Jtuned")
    return made


def shown_columns(query: Query) -> list[str]:
    return [part for one in query.shown for part in one.columns]


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_declares_what_a_terminal_shows(name: str) -> None:
    query = QUERIES[name]
    assert query.shown
    assert set(query.figures) <= set(all_figures())
    assert len(query.title) < 110
    # A name that says which side of the bulk is meant does not say left or right, which name the sides of a vector.
    assert not [column.name for column in query.columns if re.search(r"(^|_)(left|right)(_|$)", column.name)]


@pytest.mark.parametrize("name", QUERIES)
def test_answers_of_a_real_store_fit_and_no_number_is_cut(opened: Store, name: str) -> None:
    query, answer = QUERIES[name], opened.query(name)
    for width in (80, 200):
        drawn = draw(answer, width=width, view=view_of(query))
        assert max(map(wcswidth, drawn.lines)) <= width
        gone = {header.split(" ")[0] for header in drawn.left_out}
        assert not gone or width == 80, "200 cells are enough for what a query shows by default"
        assert len(gone) <= 4
        kept = [part for one in query.shown if one.name not in gone for part in one.columns]
        check_numbers(answer.select(list(dict.fromkeys(kept))).to_pylist(), drawn.lines)


def check_numbers(rows: Iterable[dict[str, Any]], lines: Iterable[str]) -> None:
    """Every number of the rows is a word of the lines, with at least three digits."""
    words = {word for line in lines for word in re.split(r"[\s|×→]+|…(?=[-\d])", line)}
    floats = sorted({float(word) for word in words if re.fullmatch(r"-?\d+(\.\d+)?(e[-+]\d+)?", word)})
    for row in rows:
        for column, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if isinstance(value, int):
                assert str(value) in words, f"{column} = {value}"
            else:
                error = max(0.0051 * abs(value), 0.051 if abs(value) >= 99 else 0.0)
                assert any(abs(found - value) <= error for found in floats), f"{column} = {value}"


@pytest.mark.parametrize("name", QUERIES)
def test_names_that_are_hostile_or_long_do_not_steer_the_terminal_and_fit(hostile: Store, name: str) -> None:
    answer, view = hostile.query(name), view_of(QUERIES[name])
    for width, shown in ((40, view), (80, view), (200, view), (None, replace(view, shown=())), (80, View())):
        lines = draw(answer, width=width, view=shown).lines
        assert all(line.isprintable() for line in lines)
        assert width is None or max(map(wcswidth, lines)) <= width


def test_notes_and_tables_of_hostile_names_are_printable(
    rmtscan: Run, hostile: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["models"], ["status"], ["query", "fleet_overview", "--wide"], ["query", "pair_intruders"]):
        told = rmtscan(*words, "--store", hostile.url)
        assert told.status == 0
        assert all(line.isprintable() for line in (*told.out.decode().splitlines(), *told.err.splitlines()))


def test_an_empty_store_has_headers_that_fit(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    for name, query in QUERIES.items():
        drawn = draw(store.query(name), width=80, view=view_of(query))
        assert max(map(wcswidth, drawn.lines)) <= 80, name
        assert drawn.lines[-1].startswith("─")


def test_ten_thousand_matrices_are_lines_of_their_own_or_a_few_and_a_total(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tensors = [f"model.layers.{n // 70}.mlp.experts.{n % 70}.down_proj.weight" + "x" * 40 for n in range(10_000)]
    table = pa.table({"tensor": tensors, "expert": range(10_000), "p": [n / 10_000 for n in range(10_000)]})
    write(table, "table", view=View(totals=("expert",)))
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert len(lines) == 2 + 200 + 2
    assert max(map(wcswidth, lines)) <= 80
    assert lines[-1].split() == ["total", str(sum(range(10_000)))]
    assert told.err.startswith("... 9,800 more rows, 10,000 in all; ")
    write(table, "table", rows=None)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]] == list(map(str, range(10_000)))


def test_descriptions_and_lists_fit(rmtscan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["query", "--list"], ["plot", "--list"], *(["query", name, "--list"] for name in QUERIES)):
        lines = rmtscan(*words).out.decode().splitlines()
        assert max(map(wcswidth, lines)) <= 80, words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class AtOnce(threading.Timer):
    def start(self) -> None:
        self.function()

    def join(self, timeout: float | None = None) -> None:
        pass


def test_what_takes_long_says_so_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.cli.progress.threading.Timer", AtOnce)
    monkeypatch.setenv("TERM", "xterm")
    terminal, file = Terminal(), io.StringIO()
    with waiting(terminal, "asking \x1b[2J"), waiting(file, "asking"):
        pass
    assert "asking \\x1b[2J" in terminal.getvalue()
    assert file.getvalue() == ""


def test_a_column_that_has_one_value_is_in_the_caption(
    rmtscan: Run, real: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    models = json.loads(rmtscan("models", "--store", real, "--format", "json").out)
    name = next(row["model"] for row in models if not row["model"].startswith("delta:"))
    lines = rmtscan("query", "layer_trend", "-p", f"model={name}", "--store", real).out.decode().splitlines()
    assert lines[0].split(" · ")[0] == f"model {name}"
    assert "model" not in lines[2]
    assert sum(name in line for line in lines) == 1


def test_machine_formats_have_all_columns_and_those_that_are_chosen(rmtscan: Run, real: str) -> None:
    rows = json.loads(rmtscan("query", "scans", "--store", real, "--format", "json").out)
    assert list(rows[0]) == [column.name for column in QUERIES["scans"].columns]
    told = rmtscan("query", "scans", "--store", real, "--columns", "dtype, model", "--format", "json")
    assert list(json.loads(told.out)[0]) == ["dtype", "model"]
    header = rmtscan("query", "scans", "--store", real, "--columns", "dtype,model").out.decode().splitlines()[0]
    assert header.split() == ["dtype", "model"]
    wide = rmtscan("query", "outliers", "--store", real, "--wide").out.decode()
    assert "query_below" in wide
    refused = rmtscan("query", "scans", "--store", real, "--columns", "dtyp")
    assert (refused.status, "did you mean 'dtype'?" in refused.told) == (2, True)


def test_two_numbers_in_one_cell_are_two_columns_for_programs(rmtscan: Run, real: str) -> None:
    rows = json.loads(rmtscan("query", "outliers", "--store", real, "--format", "json").out)
    [first] = [row for row in rows if row["query_below"] is not None][:1]
    assert {type(first[f"query_{side}"]) for side in ("below", "above")} == {int}
    lines = rmtscan("query", "outliers", "--store", real).out.decode().splitlines()
    assert any(re.search(rf"\b{first['query_below']}\|{first['query_above']}\b", line) for line in lines)


def test_a_query_for_charts_prints_few_rows_and_says_how_to_see_all(rmtscan: Run, real: str) -> None:
    rows = json.loads(rmtscan("query", "spectrum_by_role", "--store", real, "--format", "json").out)
    told = rmtscan("query", "spectrum_by_role", "--store", real, "--columns", "role,k")
    assert len(told.out.decode().splitlines()) == 2 + 10
    assert f"{len(rows) - 10:,} more rows, {len(rows):,} in all; made for a chart (rmtscan plot" in told.err
    assert "--all prints them" in told.err
    every = rmtscan("query", "spectrum_by_role", "--store", real, "--columns", "role,k", "--all")
    assert (len(every.out.decode().splitlines()), every.err) == (2 + len(rows), "")
    three = rmtscan("query", "spectrum_by_role", "--store", real, "--columns", "role,k", "--rows", "3")
    assert len(three.out.decode().splitlines()) == 2 + 3


def test_totals_are_those_of_all_rows_and_of_one_model_where_they_mean_something_there(rmtscan: Run, real: str) -> None:
    rows = json.loads(rmtscan("query", "fleet_overview", "--store", real, "--format", "json").out)
    last = rmtscan("query", "fleet_overview", "--rows", "1", "--store", real).out.decode().splitlines()[-1].split()
    assert last[:2] == ["total", str(sum(row["matrices"] for row in rows))]
    several = rmtscan("query", "outliers", "--store", real).out.decode()
    assert "total" not in several
    one = rmtscan("query", "outliers", "-p", f"model={rows[0]['model']}", "--store", real).out.decode()
    assert one.splitlines()[-1].split()[0] == "total"


def lines_of(columns: dict[str, list[Any]], width: int | None, **view: Any) -> list[str]:
    return list(draw(pa.table(columns), width=width, view=View(**view)).lines)


def test_rows_of_a_model_stand_below_its_name() -> None:
    columns = {"model": ["a"] * 3 + ["b"] * 2, "layer": [0, 1, 2, 0, 1], "p": [0.5, 0.25, 0.125, 1e-12, 123456.0]}
    assert lines_of(columns, 80) == [
        "layer         p",
        "───────────────",
        "model a",
        "    0     0.500",
        "    1     0.250",
        "    2     0.125",
        "",
        "model b",
        "    0  1.00e-12",
        "    1  123456.0",
    ]


def test_columns_without_room_are_named() -> None:
    drawn = draw(pa.table({f"column{i}": [10**17 + i, i] for i in range(9)}), width=80)
    assert max(map(wcswidth, drawn.lines)) <= 80
    assert drawn.left_out == tuple(f"column{i}" for i in range(4, 9))
    alone = draw(pa.table({f"column{i}": [10**17 + i] for i in range(9)} | {"text": ["x" * 99]}), width=80)
    assert alone.left_out == ()
    assert [line.split() for line in alone.lines[:9]] == [[f"column{i}", str(10**17 + i)] for i in range(9)]
    assert re.fullmatch("text     x+…x+", alone.lines[9])
    assert wcswidth(alone.lines[9]) == 80


@given(st.text(max_size=60), st.integers(1, 40))
def test_an_elided_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    text = "".join(char for char in text if char.isprintable() and wcswidth(char) == 1)
    found = elide(text, width)
    assert wcswidth(found) <= width
    if found != text:
        start, _, end = found.partition("…")
        assert text.startswith(start)
        assert text.endswith(end)
        assert len(start) - len(end) in (0, 1)


def test_names_that_differ_stay_different_wherever_the_difference_is() -> None:
    for form in (
        "{}/a-model-with-a-very-long-name",
        "org/model-with-a-name-step{}-of-the-training",
        "org/a-long-name-{}",
    ):
        names = [form.format(1000 + step) for step in range(50)]
        found = elided(names, 22)
        assert len({*found}) == 50
        assert max(map(wcswidth, found)) <= 22
        for name, short in zip(names, found, strict=True):
            start, _, end = short.partition("…")
            assert name.startswith(start)
            assert name.endswith(end)


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.none(), min_size=1, max_size=5),
    st.lists(st.text(max_size=90), min_size=1, max_size=5),
    st.integers(60, 120),
)
def test_any_table_fits_and_keeps_its_numbers(numbers: list[float | None], texts: list[str], width: int) -> None:
    count = max(len(numbers), len(texts))
    names = [text.replace("\0", "") for text in texts]
    columns = {
        "model": pa.array([names[i % len(names)] for i in range(count)]),
        "tensor": pa.array([names[-1 - i % len(names)] for i in range(count)]),
        "number": pa.array([numbers[i % len(numbers)] for i in range(count)], pa.float64()),
    }
    drawn = draw(pa.table(columns), width=width, view=View())
    from rich.cells import cell_len  # wcwidth knows other widths for a few characters that no font agrees on

    assert all(cell_len(line) <= width and line.isprintable() for line in drawn.lines)
    assert not drawn.left_out


def test_shown_columns_of_a_header_are_read() -> None:
    assert QUERIES["outlier_share"].shown[2] == Shown(name="shape", columns=("rows", "cols"), between="×")
    assert QUERIES["pair_summary"].shown[7].between == " → "
