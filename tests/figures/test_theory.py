"""Figures `theory` and `lazy`: their data agrees with the computed values."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from scanner.cli.main import main
from scanner.errors import ScannerError
from scanner.figures import FIGURES
from scanner.rmt.theory import MinimalModel
from scanner.store import Store, open_store

from .stores import add_lazy


def values(specification: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of all data in a chart of several layers; long ones stand there as CSV."""
    found: list[dict[str, Any]] = []
    for rows in specification["datasets"].values():
        listed = csv.DictReader(io.StringIO(rows)) if isinstance(rows, str) else rows
        found += [{name: _number(value) for name, value in row.items()} for row in listed]
    return found


def _number(value: Any) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def test_theory_draws_closed_forms_and_samples_with_error_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.figures.theory.ROWS", 64)
    monkeypatch.setattr("scanner.figures.theory.COLS", 256)
    steps: list[tuple[int, int]] = []
    drawn = FIGURES["theory"].draw(None, draws=6, progress=lambda done, total: steps.append((done, total))).to_dict()
    assert steps == [(done, 48) for done in range(49)]
    assert "6 draws of 64 × 256" in drawn["title"]["subtitle"][0]
    rows = values(drawn)
    curve = [row for row in rows if row.get("what") == "smallest singular value" and "low" not in row]
    assert len(curve) == 120
    for row in curve[1:]:
        outlier = MinimalModel(beta=row["beta"]).outlier()
        assert outlier is not None
        assert row["value"] == pytest.approx(outlier.singular_value, rel=1e-3)
    points = [row for row in rows if "low" in row]
    assert len(points) == 24
    assert all(row["low"] < row["value"] < row["high"] for row in points)
    strong = {row["what"]: row["value"] for row in points if row["beta"] == 100.0}
    expected = MinimalModel(beta=100.0).outlier()
    assert expected is not None
    assert strong["smallest singular value"] == pytest.approx(expected.singular_value, rel=0.05)
    assert strong["with the teacher's u"] == pytest.approx(expected.overlap_u, abs=0.06)

    with pytest.raises(SystemExit) as end:
        main(["plot", "theory", "-o", str(tmp_path / "theory.svg"), "--store", str(tmp_path / "none")])
    assert not end.value.code
    assert (tmp_path / "theory.svg").read_text("utf-8").startswith("<svg")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ScannerError, match="`draws` must be at least 2"):
        FIGURES["theory"].draw(None, draws=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two seeds of a rich network, one of a lazy one, and one of another size."""
    store = open_store(str(tmp_path / "store"), create=True)
    for alpha, seed, width, accuracy in ((1.0, 0, 64, 0.9), (1.0, 1, 64, 0.8), (15.0, 0, 64, 0.5), (1.0, 0, 32, 0.7)):
        add_lazy(store, alpha=alpha, seed=seed, width=width, accuracy=accuracy)
    return store


def test_lazy_draws_means_and_spreads(store: Store) -> None:
    chart = FIGURES["lazy"].draw(store, model="mlp 64-512-10").to_dict()
    found = {(row["regime"], row["percent"]): row for row in values(chart)}
    assert set(found) == {("α = 1", 0.0), ("α = 1", 20.0), ("α = 15", 0.0), ("α = 15", 20.0)}
    mean = found["α = 1", 20.0]
    assert (mean["value"], mean["low"], mean["high"]) == pytest.approx((0.85, 0.7793, 0.9207), abs=1e-4)
    assert found["α = 15", 20.0]["low"] == 0.5  # one seed has no spread
    assert found["α = 15", 0.0]["value"] == 0.95


def test_lazy_says_which_networks_there_are(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ScannerError, match=r"give `model`, one of: .*mlp 32-512-10 on digits"):
        FIGURES["lazy"].draw(store)
    with pytest.raises(ScannerError, match="no network 'x'"):
        FIGURES["lazy"].draw(store, model="x")
    with pytest.raises(ScannerError, match="rmtscan lazy-learning"):
        FIGURES["lazy"].draw(open_store(str(tmp_path / "empty"), create=True))
