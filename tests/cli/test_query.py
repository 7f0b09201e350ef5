"""Asking a store on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanner.store import Store, open_store
from scanner.store.tables import SCHEMAS
from tests.store.rows import NOON, Matrix, Pair, add_comparison, add_scan, failure
from tests.store.test_experiment_queries import add_overlaps, add_point, add_run

from .conftest import Run

QUERIES = sorted(path.stem for path in (Path(__file__).parent.parent.parent / "queries").glob("*.sql"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"), create=True)
    add_scan(made, "abc", [Matrix(), Matrix(tensor="block.1.query", layer=1)], model="org/one", failed=["broken"])
    add_scan(made, "def", [Matrix()], model="org/two", hours=1)
    return made


def test_the_list_names_every_query_with_its_parameters(rmtscan: Run) -> None:
    told = rmtscan("query", "--list", "--format", "json")
    assert (told.status, told.err) == (0, "")
    rows = json.loads(told.out)
    assert [row["query"] for row in rows] == QUERIES
    assert all(row["answers"] for row in rows)
    assert {row["query"]: row["parameters"] for row in rows}["scans"] == "model revision"
    assert rmtscan("query", "--list").out.decode().count("\n") == len(QUERIES) + 2


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_explains_itself_and_answers(rmtscan: Run, store: Store, name: str) -> None:
    told = rmtscan("query", name, "--list")
    text = told.out.decode()
    assert (told.status, told.err) == (0, "")
    assert text.startswith(f"{name}: ")
    told = rmtscan("query", name, "--store", store.url, "--format", "csv")
    header, *answer = told.out.decode().splitlines()
    columns = [column.strip('"') for column in header.split(",")]
    assert told.status == 0
    assert told.err.startswith("no rows: ") is not bool(answer), "an empty answer says where to look"
    assert len(told.err.splitlines()) == (0 if answer else 1)
    explained = [line.split()[0] for line in text.partition("Columns:\n")[2].splitlines()]
    assert columns == explained


def test_parameters_choose(rmtscan: Run, store: Store) -> None:
    def models(*parameters: str) -> list[str]:
        told = rmtscan("query", "scans", *parameters, "--store", store.url, "--format", "json")
        return [row["model"] for row in json.loads(told.out)]

    assert models() == ["org/two", "org/one"]
    assert models("-p", "model=org/one") == ["org/one"]
    assert models("--param", "model=org/two", "-p", "revision=r") == ["org/two"]
    assert models("-p", "model=ONE") == ["org/one"]
    told = rmtscan("query", "scans", "-p", "model=org/one' OR 1=1 --", "--store", store.url)
    assert (told.status, told.err.count("error: there is no model")) == (1, 1)


def test_the_store_can_come_from_the_environment(rmtscan: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMTSCAN_STORE", store.url)
    told = rmtscan("models", "--format", "json")
    assert [row["scan_id"] for row in json.loads(told.out)] == ["def", "abc"]


def test_status_tells_what_is_scanned_and_what_is_not_finished(rmtscan: Run, store: Store) -> None:
    writer = store.writer("ghi", method={}, model="org/three")
    matrix = Matrix()
    writer.stage(matrix.key, *matrix.tables("ghi", "org/three", "r1"))
    writer.stage_failure("other", failure("ghi", "other", "org/three"))
    told = rmtscan("status", "--store", store.url, "--format", "json")
    rows = [(row["model"], row["state"], row["matrices"], row["failed"]) for row in json.loads(told.out)]
    assert rows == [
        ("org/two", "scanned", 1, 0),
        ("org/one", "scanned", 2, 1),
        ("org/three", "unfinished", 1, 1),
    ]


def test_a_store_with_nothing_in_it_says_how_to_begin(rmtscan: Run, tmp_path: Path) -> None:
    open_store(str(tmp_path / "store"), create=True)
    told = rmtscan("status", "--store", tmp_path / "store", "--format", "json")
    assert (told.status, json.loads(told.out)) == (0, [])
    assert "start with: rmtscan scan REF" in told.err
    told = rmtscan("query", "outliers", "--store", tmp_path / "store", "--format", "json")
    assert (told.status, json.loads(told.out)) == (0, [])
    assert "`rmtscan query experiments` the experiments" in told.err


def test_a_parameter_may_be_given_as_the_null_that_the_list_shows(rmtscan: Run, store: Store) -> None:
    told = rmtscan("query", "scans", "-p", "model=NULL", "--store", store.url, "--format", "json")
    assert (told.status, len(json.loads(told.out))) == (0, 2)


def test_status_does_not_hide_experiments_where_nothing_is_scanned(rmtscan: Run, tmp_path: Path) -> None:
    made = open_store(str(tmp_path / "store"), create=True)
    add_run(made, "run", "ablation")
    add_point(made, "d1", set="decile:1", delta=1.0, finished_at=NOON)
    add_point(made, "base", set="none", delta=0.0)
    add_overlaps(made, "begun", [0.1, 0.2])
    told = rmtscan("status", "--store", made.url, "--format", "json")
    assert "runs of experiments: 2 (rmtscan query experiments" in told.err
    told = rmtscan("query", "experiments", "--store", made.url, "--format", "json")
    found = [(row["run_id"], row["kind"], row["model"], row["points"]) for row in json.loads(told.out)]
    assert found == [("run", "ablation", "org/model", 1), ("begun", None, "org/model", 1)]


def test_sql_asks_the_views(rmtscan: Run, store: Store) -> None:
    statement = "SELECT model, count(*) AS n FROM vectors GROUP BY model ORDER BY model"
    told = rmtscan("sql", statement, "--store", store.url, "--format", "json")
    assert json.loads(told.out) == [{"model": "org/one", "n": 8}, {"model": "org/two", "n": 4}]


def test_the_help_of_sql_names_every_table(rmtscan: Run) -> None:
    words = set(rmtscan("sql", "--help").out.decode().replace(",", " ").replace(";", " ").replace(".", " ").split())
    assert words >= {*SCHEMAS, "all_matrices", "all_vectors", "all_pairs", "all_pair_vectors", "all_pair_subspaces"}


def test_bytes_that_are_no_text_are_refused_with_one_line(rmtscan: Run, store: Store) -> None:
    for words in (["sql", "select '\udcff'"], ["query", "scans", "-p", "model=\udcff"]):
        told = rmtscan(*words, "--store", store.url)
        assert (told.status, len(told.err.splitlines())) == (1, 1)
        assert "not UTF-8" in told.err


def test_an_empty_answer_about_pairs_names_what_is_compared(rmtscan: Run, store: Store) -> None:
    told = rmtscan("query", "pair_intruders", "--store", store.url)
    assert "no pair of models has been compared" in told.err
    add_comparison(store, "one", [Pair()])
    told = rmtscan("query", "pair_intruders", "--store", store.url)
    assert "org/base -> org/tuned" in told.err
    assert "models" not in told.err.replace("pair of models", "")
