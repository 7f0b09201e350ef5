"""One model on one screen: what was scanned, what stands out, the strip, and what to do next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from wcwidth import wcswidth

from scanner.store import Store, open_store
from tests.fixtures.store import unpack
from tests.store.rows import Matrix, add_scan

from .conftest import Run

ESCAPES = "\x1b[31mred\x1b]0;title\x07\u202e" + "long" * 80


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(unpack(tmp_path_factory.mktemp("show")) / "store"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"), create=True)
    for scan_id, name in enumerate(("org/minilm-base", "org/minilm-tuned", "org/other")):
        add_scan(made, str(scan_id), [Matrix()], model=name)
    return made


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_scanned_model_has_a_screen_that_fits(
    rmtscan: Run, real: Store, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for scan in real.query("scans").to_pylist():
        told = rmtscan("show", scan["model"], "--store", real.url)
        text = told.out.decode()
        assert (told.status, told.err) == (0, "")
        screen = text.partition("\nNext\n")[0].splitlines()
        assert max(map(wcswidth, screen)) <= width
        assert len(text.splitlines()) <= 60
        for part in ("What stands out", "Mean p-value by role and decile", "Next"):
            assert text.count(part) == 1
        counted = "SELECT count(*) AS n FROM matrices WHERE model = $model AND head IS NULL"
        [row] = real.sql(counted, {"model": scan["model"]}).to_pylist()
        assert f"{row['n']} matrices" in text.replace("\n", " ")


def test_the_strip_has_the_numbers_of_the_query(rmtscan: Run, real: Store) -> None:
    model = "base"
    rows = real.query("role_table", model=model).to_pylist()
    lines = rmtscan("show", model, "--store", real.url).out.decode().splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:3] == ["1", "2", "3"])
    for row, line in zip(rows, lines[start + 1 :], strict=False):
        side, *cells = line[10:].split() if line[:10].strip() else line.split()
        expected = [f"{row[f'd{decile}']:.2f}" for decile in range(1, 11) if row[f"d{decile}"] is not None]
        assert (side, cells[: len(expected)]) == (row["side"], expected)


def test_a_terminal_with_colors_gets_colors_and_no_color_turns_them_off(
    rmtscan: Run, real: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert b"\x1b" not in rmtscan("show", "base", "--store", real.url).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    colored = rmtscan("show", "base", "--store", real.url).out
    assert b"48;5;" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    assert b"48;5;" not in rmtscan("show", "base", "--store", real.url).out


def test_a_name_may_be_any_part_that_no_other_name_has(rmtscan: Run, store: Store) -> None:
    assert rmtscan("show", "OTHER", "--store", store.url).out.decode().startswith("org/other\n")
    told = rmtscan("show", "minilm", "--store", store.url)
    assert (told.status, told.out) == (1, b"")
    assert told.err == "error: 'minilm' is part of 2 names: choose one of org/minilm-base, org/minilm-tuned\n"
    told = rmtscan("show", "minilm-bsae", "--store", store.url)
    assert told.errors == ["error: there is no model 'minilm-bsae': did you mean org/minilm-base, org/minilm-tuned?"]
    told = rmtscan("show", "--store", store.url)
    assert told.errors == ["error: the store has 3 models: name one of org/minilm-base, org/minilm-tuned, org/other"]


def test_queries_match_names_in_the_same_way(rmtscan: Run, store: Store) -> None:
    told = rmtscan("query", "scans", "-p", "model=tuned", "--store", store.url, "--format", "json")
    assert [row["model"] for row in json.loads(told.out)] == ["org/minilm-tuned"]
    told = rmtscan("query", "model_compare", "-p", "a=base", "-p", "b=other", "--store", store.url, "--format", "json")
    assert [row["model"] for row in json.loads(told.out)] == ["org/minilm-base", "org/other"]
    told = rmtscan("query", "scans", "-p", "model=minilm", "--store", store.url)
    assert (told.status, len(told.errors)) == (1, 1)


def test_a_name_that_is_given_as_a_whole_wins_over_longer_ones(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    for scan_id, name in enumerate(("a", "ab", "delta:a..ab")):
        add_scan(store, str(scan_id), [Matrix()], model=name)
    assert [store.find_model(text) for text in ("a", "b", "delta:", "..ab")] == [
        "a",
        "ab",
        "delta:a..ab",
        "delta:a..ab",
    ]


def test_removal_without_a_question_needs_the_whole_name(rmtscan: Run, store: Store) -> None:
    told = rmtscan("rm", "other", "--yes", "--store", store.url)
    assert told.errors == ["error: 'other' is a part of 'org/other': with --yes, write the whole name"]
    told = rmtscan("rm", "other", "--dry-run", "--store", store.url, "--format", "json")
    assert [row["model"] for row in json.loads(told.out)] == ["org/other"]
    assert store.query("scans").num_rows == 3


def test_an_empty_store_and_one_with_unfinished_scans_say_what_there_is(rmtscan: Run, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    told = rmtscan("show", "--store", store.url)
    assert (told.status, len(told.errors)) == (1, 1)
    assert "has no finished scan: rmtscan scan REF" in told.err
    matrix = Matrix()
    store.writer("ghi", method={}, model="org/half").stage(matrix.key, *matrix.tables("ghi", "org/half", "r1"))
    for words in (["show"], ["show", "half"], ["query", "outliers", "-p", "model=half"]):
        told = rmtscan(*words, "--store", store.url)
        assert (told.status, len(told.errors)) == (1, 1)
        assert "scan of 'org/half' is not finished (1 matrices so far)" in told.err


def test_hostile_names_print_harmlessly(rmtscan: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    store = open_store(str(tmp_path / "store"), create=True)
    add_scan(store, "a", [Matrix(tensor=ESCAPES, stack=ESCAPES, role=ESCAPES)], model=ESCAPES, revision=ESCAPES)
    told = rmtscan("show", "--store", store.url)
    assert told.status == 0
    lines = told.out.decode().splitlines()
    assert all(line.isprintable() for line in lines)
    assert max(wcswidth(line) for line in lines[: lines.index("Next")]) <= 80
    told = rmtscan("show", ESCAPES[1:] + "x", "--store", store.url)
    assert all(line.isprintable() for line in told.err.splitlines())


def test_a_model_of_ten_thousand_matrices_is_one_screen(
    rmtscan: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from fleet import Fleet, build

    layers = 1440
    made = build(tmp_path / "store", Fleet(scans=1, revisions=0, comparisons=0, layers=layers, width=16, inner=24))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)  # the commands that are shown end with the name of the store, which is not broken
    told = rmtscan("show", "--store", "store")
    text = told.out.decode()
    lines = text.splitlines()
    assert (told.status, told.err) == (0, "")
    assert f"10,080 matrices in {layers} layers" in text
    assert len(lines) < 45
    assert max(map(wcswidth, lines)) <= 80
    means = made.sql("from matrices select role, layer, (u_p_mean + v_p_mean) / 2 as p").to_pandas()
    least = means.sort_values("p").iloc[0]
    assert f"least random matrices (mean p): {least.role} L{least.layer} {least.p:.3f}" in " ".join(text.split())
    [strip] = [line.split() for line in lines if line.startswith("  mlp_gate v")]
    assert len(strip) == 2 + 10 + 1, "a cell for every decile, and the outliers"


def test_commands_that_do_not_fit_are_continued_on_the_next_line(
    rmtscan: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    add_scan(store, "a", [Matrix()], model="org/it's-" + "y" * 30)
    monkeypatch.chdir(tmp_path)
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        commands = rmtscan("show", "--store", "store").out.decode().partition("\nNext\n")[2]
        assert (" \\\n" in commands) == (width == 80)
        joined = commands.replace("\\\n", "").strip().splitlines()
        assert [shlex.split(line)[:2] for line in joined] == [["rmtscan", verb] for verb in ("query", "plot", "report")]
        assert all(shlex.split(line)[-1] == "store" for line in joined)
        told = rmtscan(*shlex.split(joined[0])[1:])
        assert (told.status, told.errors) == (0, [])


def test_other_formats_print_the_rows_of_the_strip(rmtscan: Run, real: Store) -> None:
    rows = json.loads(rmtscan("show", "base", "--store", real.url, "--format", "json").out)
    assert [row["role"] for row in rows] == [row["role"] for row in real.query("role_table", model="base").to_pylist()]
