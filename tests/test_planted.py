"""The benchmark of the edges runs at its small size, keeps its bounds, and notices edges that are wrong."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from scanner.rmt.analysis import analyze
from scanner.rmt.marchenko_pastur import singular_value_edges

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "planted.py"
KINDS = {"median", "std", "init", "bulk", "scale total", "scale robust", "BEMA", "WeightWatcher", "Spectrum"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    written = tmp_path_factory.mktemp("planted") / "planted.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(written)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    content: dict[str, Any] = json.loads(written.read_text())
    return content


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    """The script as a module; `measure` refuses to be imported after numpy, so a stand-in takes its place."""
    spec = importlib.util.spec_from_file_location("planted_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    stand_in = ModuleType("measure")
    stand_in.Row = dict  # type: ignore[attr-defined]
    before = sys.modules.get("measure")
    sys.modules["measure"], sys.modules["planted_script"] = stand_in, module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["measure"]
        if before is not None:
            sys.modules["measure"] = before
    return module


def test_every_kind_is_measured_on_every_noise(found: dict[str, Any]) -> None:
    noises = {"gaussian", "uniform", "rows", "rows and columns", "t3"}
    assert {(row["noise"], row["edges"]) for row in found["spikes"]} == {
        (one, kind) for one in noises for kind in KINDS
    }
    assert {row["edges"] for row in found["below"]} == KINDS
    # Known: with unequal rows, the edge below the bulk of a wide matrix is too large, because the rest of the spikes is left in
    # the smallest rows. Everything else is within its bounds.
    assert [line for line in found["out_of_bounds"] if "below" not in line] == []
    assert [line for line in found["out_of_bounds"] if line.startswith(("gaussian", "uniform"))] == []


def test_ours_is_within_its_bounds_and_the_total_scale_is_not(found: dict[str, Any]) -> None:
    by_kind = {(row["noise"], row["shape"], row["edges"]): row for row in found["spikes"]}
    for (noise, shape, kind), row in by_kind.items():
        if kind == "scale robust" and noise != "t3":
            assert row["recall"] >= 0.98, (noise, shape)
            assert row["precision"] >= 0.98, (noise, shape)
        if kind == "scale total" and noise == "gaussian":
            assert row["upper_error"] > 0.1, "spikes inflate it"
    below = {row["edges"]: row for row in found["below"]}
    assert below["scale robust"]["exactly one below"] == below["scale robust"]["matrices"]


def test_planted_spikes_have_the_strengths_that_they_say(planted: ModuleType) -> None:
    about = planted.NOISES["gaussian"]
    one = planted.plant(about, 300, 200, np.random.default_rng(0))
    assert (one.lower, one.upper) == pytest.approx(singular_value_edges(one.sigma, 300, 200), rel=1e-5)
    theta = one.strengths[0] * one.sigma * (300 * 200) ** 0.25
    # A spike theta in noise of variance sigma^2: s^2 = (theta^2 + m sigma^2)(theta^2 + n sigma^2) / theta^2
    expected = np.sqrt((theta**2 + 300 * one.sigma**2) * (theta**2 + 200 * one.sigma**2)) / theta
    # The noise along the spike moves it with the standard deviation sigma.
    assert np.linalg.norm(one.matrix, 2) == pytest.approx(expected, abs=4.0 * one.sigma)


def test_wrong_edges_are_out_of_bounds(planted: ModuleType) -> None:
    one = planted.plant(planted.NOISES["gaussian"], 192, 192, np.random.default_rng(1))
    right = analyze(one.matrix)

    def score(factor: float) -> list[str]:
        from dataclasses import replace

        moved = replace(right, scale_upper_robust=right.scale_upper_robust * factor)  # type: ignore[operator]
        counted = planted.Score(sigma=[], lower=[], upper=[])
        counted.add(one, moved, "scale robust")
        told: list[str] = planted.exceeded("gaussian", "192 x 192", counted)
        return told

    assert score(1.0) == []
    assert any("recall" in line for line in score(1.3))
    assert any("precision" in line for line in score(0.9))
    assert any("edge" in line for line in score(1.05))


@pytest.mark.parametrize("shape", [(192, 192), (300, 120)])
def test_the_edge_of_weightwatcher_is_the_one_that_it_counts_with(planted: ModuleType, shape: tuple[int, int]) -> None:
    found = analyze(planted.plant(planted.NOISES["gaussian"], *shape, np.random.default_rng(1)).matrix)
    lower, upper = planted.edges_of(found, "WeightWatcher")
    assert lower == -np.inf
    assert int((found.singular_values > upper).sum()) == found.metrics["ww_num_spikes"] > 0


def test_the_edge_of_spectrum_is_its_formula(planted: ModuleType) -> None:
    found = analyze(np.diag(np.arange(1.0, 102.0)))
    assert planted.edges_of(found, "Spectrum") == (-np.inf, pytest.approx(50.0 / 1.349 * 2.0))


def test_auc_is_the_share_of_ordered_pairs(planted: ModuleType) -> None:
    values, positive = np.array([1.0, 2.0, 2.0, 3.0, 0.0]), np.array([False, True, False, True, False])
    pairs = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    assert planted._auc(values, positive) == pytest.approx(np.mean(pairs))
    assert planted._auc(values, np.ones(5, dtype=bool)) is None
