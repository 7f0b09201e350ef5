"""Figures and report of a model that was scanned without vectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanner.checkpoint import Selection
from scanner.errors import ScannerError
from scanner.figures import FIGURES
from scanner.report import write_report
from scanner.store import Store, open_store

from .stores import BASE, scan

#: Figures of scans, and whether they need vectors.
NEEDED = {
    "spectrum": False,
    "spectra_by_role": False,
    "histograms_by_role": False,
    "outliers": False,
    "depth": True,
    "pvalues_by_role": True,
    "vector": True,
    "scale": True,
    "decompose": True,
}


@pytest.fixture(scope="module")
def values_store(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("values") / "store"), create=True)
    scan(store, minilm, BASE, Selection(only=("query", "mlp_up"), layers=(0, 2)), "values", values_only=True)
    return store


@pytest.mark.parametrize("name", NEEDED)
def test_a_figure_is_drawn_or_says_that_it_needs_vectors(name: str, values_store: Store) -> None:
    if NEEDED[name]:
        with pytest.raises(ScannerError, match="again without `--values-only`, which leaves out the vectors"):
            FIGURES[name].draw(values_store, model=BASE)
    else:
        assert FIGURES[name].draw(values_store, model=BASE).to_dict()


def test_the_report_has_what_there_is(values_store: Store, tmp_path: Path) -> None:
    write_report(values_store, [BASE], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "query" in text
    assert "NaN" not in text.split("<script", 1)[0]
