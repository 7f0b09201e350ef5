"""What results look like in Python and in a notebook; answers of queries stay Arrow tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scanner
from scanner import display
from scanner.engine import ComparisonReport, ModelReport, ScanReport
from scanner.errors import CheckpointError
from scanner.experiments.experiment import Report
from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan

HOSTILE = '<script>alert("x")</script>\x1b[31m'


class Cells(HTMLParser):
    """The texts of a table, and the tags that are there."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(str(tmp_path / "store"), create=True)
    add_scan(made, "one", [Matrix(), Matrix(tensor="block.1.query", layer=1)], model="org/one")
    add_scan(made, "two", [Matrix()], model=HOSTILE, hours=1)
    yield made
    made.close()


def test_an_analysis_is_one_line_with_the_counts_of_numpy() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(80, 40)) + 20 * np.outer(rng.normal(size=80), rng.normal(size=40)) / 40
    result = scanner.analyze(matrix)
    values = np.linalg.svd(matrix, compute_uv=False)
    below, above = int((values < result.mp_lower).sum()), int((values > result.mp_upper).sum())
    words = f"80 × 40: {below} below | {40 - below - above} bulk | {above} above, mean p "
    assert repr(result).startswith(f"Analysis({words}")
    assert "\n" not in repr(result)
    assert len(repr(result)) < 120
    assert f"{below} | {40 - below - above} | {above}" in result._repr_html_()
    assert "–" in repr(scanner.analyze(matrix, values_only=True))


def test_a_store_names_its_models_and_runs_nothing(store: Store) -> None:
    assert repr(store) == f"Store({store.url!r})"
    cells = Cells(store._repr_html_())
    assert "script" not in cells.tags
    assert "org/one" in cells.texts
    assert any(text.startswith("<script>") and "\x1b" not in text for text in cells.texts)
    assert cells.texts[-2:] == [
        "2 scans",
        'next: store.query("outliers"), store.figure("depth", model=...), store.sql("select ...")',
    ]


def test_a_store_that_is_gone_says_so_instead_of_failing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store" / "scans" / "one.parquet").write_bytes(b"no parquet")
    assert "<table>" in store._repr_html_() or "damaged" in store._repr_html_()


def test_a_store_is_a_context_that_releases_its_queries(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "new"), create=True) as opened:
        opened.query("scans")
        assert opened._open is not None
    assert opened._open is None
    assert opened.query("scans").num_rows == 0, "it opens again when it is asked again"
    opened.close()


def test_a_store_draws_figures(store: Store) -> None:
    chart = store.figure("depth", model="org/one", interactive=False, width="85mm")
    assert store.figure("depth", model="ONE", interactive=False, width="85mm").to_dict() == chart.to_dict()
    assert chart.to_dict()["title"]["text"] == "Randomness by depth"
    with pytest.raises(scanner.ScannerError, match="unknown figure 'depht': did you mean 'depth'"):
        store.figure("depht")


# ---- answers


def test_an_answer_is_the_arrow_table_that_it_was(store: Store, tmp_path: Path) -> None:
    answer = store.query("layer_trend", model="org/one")
    assert type(answer) is pa.Table
    plain = pa.table({name: answer.column(name) for name in answer.column_names})
    assert answer == plain
    assert answer.schema == plain.schema
    assert pa.concat_tables([answer, plain]).num_rows == 2 * answer.num_rows
    assert answer.to_pandas().equals(plain.to_pandas())
    # What the columns are goes with the table into a file, and through DuckDB's and polars' readers unchanged.
    pq.write_table(answer, tmp_path / "answer.parquet")
    field = pq.read_schema(tmp_path / "answer.parquet").field("v_p")
    assert field.metadata[b"description"] == b"right singular vectors: mean p-value"
    same = store.sql("select 1 as a, 2 as a")
    assert (same.column_names, same.num_rows) == (["a", "a"], 1)


def test_the_text_and_the_html_of_an_answer_have_its_rows(store: Store) -> None:
    answer = store.query("layer_trend", model="org/one")
    text = display.answer_text(answer)
    assert text is not None
    head, names, *rows = text.splitlines()
    assert head == f"layer_trend: {answer.num_rows} rows × {answer.num_columns} columns"
    assert len(rows) == answer.num_rows
    assert names.split()[0] == answer.column_names[0]
    html = display.answer_html(answer.slice(0, 1))
    assert html is not None
    assert html.count("<tr>") == 2
    assert 'title="right singular vectors: mean p-value"' in html
    hostile = display.answer_html(store.sql("select model from scans"))
    assert "script" not in Cells(hostile or "").tags
    assert display.answer_text(pa.table({"a": [1]})) is None
    assert display.answer_html(pa.table({"a": [1]})) is None


def test_long_answers_say_what_is_left_out(store: Store) -> None:
    answer = store.sql("select * from range(1000)")
    assert "1,000 rows × 1 column, the first 20 rows are shown" in (display.answer_html(answer) or "")
    assert len((display.answer_text(answer) or "").splitlines()) == 22


def test_ipython_shows_answers_as_tables_and_other_arrow_tables_as_before(store: Store) -> None:
    """In a process of its own: a shell is for the whole process."""
    pytest.importorskip("IPython")
    code = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
import pyarrow as pa, scanner
store = scanner.open_store({store.url!r})
show = shell.display_formatter.format
data, _ = show(store.query("scans"))
assert set(data) == {{"text/plain", "text/html"}}, data
assert "Committed scans" in data["text/html"] and data["text/plain"].startswith("scans: 2 rows")
other = pa.table({{"a": [1]}})
data, _ = show(other)
assert set(data) == {{"text/plain"}} and data["text/plain"] == repr(other), data
assert "org/one" in show(store)[0]["text/html"]
print("shown")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["shown"], done.stderr


# ---- reports of runs


def test_reports_of_runs_are_one_line_and_a_table() -> None:
    tensors = {"too small": [f"t{i}" for i in range(5000)]}
    done = ModelReport(reference="./m", model="org/m", revision="abc", scan_id="s", analyzed=12, skipped=tensors)
    gone = ModelReport(reference="./gone", error=CheckpointError(f"no checkpoint {HOSTILE}"))
    report = ScanReport(store="results", models=(done, gone))
    assert repr(done) == "ModelReport('org/m': 12 matrices, 0 failed, 5000 skipped)"
    assert repr(gone).startswith("ModelReport('./gone': not scanned, no checkpoint <script>")
    assert repr(report) == "ScanReport(2 models: 12 matrices, 0 failed, 1 not scanned; store 'results')"
    cells = Cells(report._repr_html_())
    assert {"org/m", "./gone", "12", "5000"} <= {*cells.texts}
    assert "script" not in cells.tags
    pair = ComparisonReport(
        store="results",
        pair_id="p",
        base_model="a",
        tuned_model="b",
        matrices=3,
        identical=("t",),
        unmatched={"no partner": ["x", "y"]},
        change_median=0.0123,
        change_largest=0.5,
        largest_in="layer 5, mlp_down",
    )
    words = "3 matrices, 1 identical, 2 unmatched, 0 failed, median change 0.0123"
    assert repr(pair) == f"ComparisonReport('a → b': {words})"
    assert "0.5 in layer 5, mlp_down" in pair._repr_html_()
    run = Report(store="results", run_ids=("r1",), unit="points", total=20, kept=5, failed={"d1": "no"}, model="org/m")
    assert repr(run) == "Report('org/m': 20 points, 5 from earlier calls, 1 failed; run r1, store 'results')"
    assert "d1: no" in run._repr_html_()


def test_long_texts_lose_their_middle() -> None:
    assert display.plain("a" * 50 + "b" * 50, most=11) == "aaaaa…bbbbb"
    assert display.plain("x\ny\x1b") == "x\\ny\\x1b"
    assert display.shown(float("nan")) == display.shown(None) == ""
    assert (display.shown(0.123456), display.shown(1234.56), display.shown(True)) == ("0.123", "1234.6", "true")


def test_the_package_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "scanner", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"rmtscan {scanner.__version__}\n")
    wrong = subprocess.run([sys.executable, "-m", "scanner", "nothing"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2


def test_the_earlier_name_of_a_count_still_works() -> None:
    report = ModelReport(reference="./m", analyzed=12)
    assert report.analysed == report.analyzed == 12
