"""Every benchmark runs from end to end at its small size, and what it says about errors and memory holds; times are not judged."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scanner.rmt.metric_set import chosen
from scanner.store.queries import load_queries

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def _run(name: str, folder: Path, *more: str) -> dict[str, Any]:
    """The JSON that a benchmark writes; its table must be on stdout and its exit status 0."""
    written = folder / f"{name}.json"
    command = [sys.executable, str(BENCHMARKS / f"bench_{name}.py"), "--quick", "--json", str(written), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ratio" in done.stdout
    found: dict[str, Any] = json.loads(written.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert found["quick"] is True
    assert found["machine"]["threads"] == 1
    return found


def _all_numbers_are_positive(rows: list[dict[str, Any]]) -> None:
    assert rows
    numbers = [value for row in rows for value in row.values() if isinstance(value, int | float)]
    assert numbers
    assert all(math.isfinite(number) and number > 0 for number in numbers)


def test_every_benchmark_is_tried_here() -> None:
    tried = {
        "ablation",
        "cost",
        "decomposition",
        "evaluation",
        "fleet",
        "hub_reading",
        "ks",
        "metrics",
        "scale_null",
        "scan",
        "scaling",
        "queries",
        "site",
        "store",
        "values",
    }
    assert {path.stem.removeprefix("bench_") for path in BENCHMARKS.glob("bench_*.py")} == tried


def test_decomposition(tmp_path: Path) -> None:
    found = _run("decomposition", tmp_path)
    _all_numbers_are_positive(found["times"])
    conditions = {row["condition"] for row in found["errors"]}
    assert conditions == {1e4, 1e5, 1e6, 1e7, 1e8}
    assert {row["spectrum"] for row in found["errors"]} == {"even in logarithm", "one outlier"}
    for row in found["errors"]:
        assert row["decompose"] <= 1e-6
        assert row["method"] == "gram"
        if row["condition"] >= 1e7:  # the benchmark tells good from bad
            assert min(row["sqrt(Gram)"], row["float32 SVD"]) > 1e-6
    assert {row["method"] for row in found["fall_back"]} == {"svd"}
    for row in found["fall_back"]:
        assert row["decompose"] <= 1e-6
        assert row["rank"] == row["true rank"]


def test_cost(tmp_path: Path) -> None:
    _all_numbers_are_positive(_run("cost", tmp_path)["rows"])


def test_hub_reading(tmp_path: Path) -> None:
    found = _run("hub_reading", tmp_path)
    ours = {row["scenario"]: row for row in found["rows"] if row["through"] == "ours"}
    assert 1 <= ours["one role of 4 shards"]["bytes / needed"] <= 1.05
    assert ours["cut once, in the middle"]["bytes / needed"] <= 1.01  # resumes
    assert {row["token leaks"] for row in found["rows"]} == {"no"}
    errors = {name for name, row in ours.items() if row["result"] != "right"}
    assert errors == {
        *("429 always, Retry-After 3600", "429 always, Retry-After of 400 digits", "503 always"),
        *("another range than asked for", "the whole file for a range"),
        *("gated, no access", "file that is not there", "commit that is not there"),
    }


def test_ablation(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    found = _run("ablation", tmp_path)
    _all_numbers_are_positive(found["times"])
    assert [(row["role"], row["matrices"]) for row in found["times"]] == [("mlp_down", 2), ("query", 2)]


def test_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    [row] = _run("evaluation", tmp_path)["times"]
    assert row["plain seconds"] > 0
    assert row["kept seconds"] > 0


def test_ks(tmp_path: Path) -> None:
    found = _run("ks", tmp_path)
    _all_numbers_are_positive(found["times"])
    assert {row["against"] for row in found["differences"]} == {"scipy.stats.kstest", "numpy float64"}
    for row in found["differences"]:
        assert row["vectors"] >= 200
        assert row["difference"] <= 1e-6


def test_scale_null(tmp_path: Path) -> None:
    found = _run("scale_null", tmp_path)
    assert {(row["shape"], row["scale"]) for row in found["times"]} == {
        (shape, kind) for shape in ("96 x 96", "64 x 256") for kind in ("total", "robust")
    }
    for row in found["times"]:
        assert row["ratio"] > 0
        assert row["failure"] == ""


def test_values(tmp_path: Path) -> None:
    found = _run("values", tmp_path)
    assert [row["shape"] for row in found["times"]] == ["96 x 96", "64 x 256"]
    for row in found["times"]:
        assert row["ratio"] > 0
        assert row["largest_difference"] < 1e-9


def test_metrics(tmp_path: Path) -> None:
    found = _run("metrics", tmp_path)
    assert [(row["shape"], row["entries"]) for row in found["times"]] == [
        (shape, entries) for shape in ("96 x 96", "64 x 256") for entries in ("spikes", "noise")
    ]
    for row in found["times"]:
        assert row["ratio"] > 0
        assert row["failure"] == ""
    assert all({*chosen(["default"])} < {*row} for row in found["each"])


def test_scan(tmp_path: Path) -> None:
    found = _run("scan", tmp_path)
    _all_numbers_are_positive(found["times"])
    _all_numbers_are_positive(found["ratios"])
    assert [(row["run"], row["matrices"]) for row in found["times"]] == [("scan", 14), ("bare loop", 14)]
    value, distance = (row["difference"] for row in found["differences"])
    assert value <= 1e-6
    assert distance <= 1e-6


def test_store(tmp_path: Path) -> None:
    found = _run("store", tmp_path, "--scans", "60")
    assert {(row["store"], row["question"]) for row in found["times"]} == {
        (store, question) for store in ("local", "s3") for question in ("open", "one model", "fleet")
    }
    [opening] = [row for row in found["times"] if row["store"] == "s3" and row["question"] == "open"]
    assert opening["requests_after"] <= 50 < opening["requests"]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the memory of processes is read from /proc")
def test_fleet(tmp_path: Path) -> None:
    found = _run("fleet", tmp_path, "--work", "0.05", "--repositories", "24")
    fleet = {row["figure"]: row["value"] for row in found["fleet"]}
    assert fleet["repositories"] == 24
    assert fleet["seconds of computing, of a checkpoint"] > 0
    large = {row["figure"]: row["value"] for row in found["large"]}
    assert large["bytes of the checkpoint, GB"] > 1
    assert 0 < large["largest memory of a worker, MB"] < 4 * 2048 * 2048 * 8 / 1e6 + 600
    assert len(found["ratios"]) == 5


def test_queries(tmp_path: Path) -> None:
    found = _run("queries", tmp_path)
    assert found["vectors"] == 4 * 14 * 64
    asked = {row["query"] for row in found["times"]}
    assert asked == {query.name for query in load_queries().values()}
    about = {row["about"] for row in found["times"]}
    assert about == {"one model", "fleet"}
    assert all(row["median_s"] > 0 for row in found["times"] + found["opening"])
    assert len(found["partial_reads"]) == 7
    for row in found["partial_reads"]:
        assert row["pushed"] == "yes"
        assert row["read_MB"] > 0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="a worker's peak memory is read from /proc")
def test_scaling(tmp_path: Path) -> None:
    found = _run("scaling", tmp_path)
    _all_numbers_are_positive(found["times"])
    _all_numbers_are_positive(found["ratios"])
    assert [row["matrices"] for row in found["times"]] == [14] * 4
    memory = found["memory"]
    assert memory["peak_MB"] >= memory["at_start_MB"] > 50  # torch and Ray are in there: it is the worker that was seen
    assert memory["peak_MB"] <= 4 * memory["largest_float64_MB"] + 600


def test_site(tmp_path: Path) -> None:
    if shutil.which("chromedriver") is None:
        pytest.skip("chromedriver is missing: run `make browser`")
    found = _run("site", tmp_path)
    _all_numbers_are_positive(found["writing"])
    for row in found["pages"]:
        assert row["value"] > 0
        assert row["met"] == "yes" or row["unit"] == "s"
