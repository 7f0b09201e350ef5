"""`rmtscan scan` from its arguments to its summary and exit status."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from scanner.store import open_store
from tests.checkpoint.writing import checkpoint
from tests.engine.checkpoints import small, tensors, weight

from .conftest import Run

pytestmark = pytest.mark.usefixtures("local_ray")
QUICK = ("--workers", "1", "--ensemble", "gaussian")


def test_all_analyzed_is_status_0_and_only_the_summary_is_on_stdout(rmtscan: Run, tmp_path: Path) -> None:
    model, store = small(tmp_path / "my-model", layers=2), tmp_path / "store"
    told = rmtscan("scan", model, "--store", store, *QUICK, "--format", "json")
    assert told.status == 0
    [row] = json.loads(told.out)
    scan_id = row.pop("scan_id")
    assert row.pop("revision")
    assert row == {"model": "my-model", "analysed": 8, "skipped": 2, "failed": 0, "state": "new"}
    assert "my-model: 2 skipped: 1-D: not a matrix" in told.err
    assert f"store: {store}" in told.err
    assert open_store(str(store)).committed() == [scan_id]

    again = rmtscan("scan", model, "--store", store, *QUICK, "--format", "csv")
    assert again.status == 0
    [row] = csv.DictReader(io.StringIO(again.out.decode()))
    assert (row["scan_id"], row["state"], row["analysed"]) == (scan_id, "already scanned", "8")
    assert "starting workers" not in again.err

    # A name is no part of the identity: the scan is the same under another one.
    named = rmtscan("scan", model, "--name", "org/mine", "--store", store, *QUICK, "--format", "json")
    assert [(row["model"], row["scan_id"]) for row in json.loads(named.out)] == [("my-model", scan_id)]
    assert "the store has this content as my-model; --force scans it again under the name org/mine" in named.err
    forced = rmtscan("scan", model, "--name", "org/mine", "--force", "--store", store, *QUICK, "--format", "json")
    assert [(row["model"], row["scan_id"]) for row in json.loads(forced.out)] == [("org/mine", scan_id)]
    opened = open_store(str(store))
    for table in ("scans", "matrices", "vectors"):
        assert opened.sql(f"SELECT DISTINCT model FROM {table}").to_pylist() == [{"model": "org/mine"}]


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("", [], "--name is empty"),
        (" spaces ", [], "no space at the ends"),
        ("a\x1b[31m", [], "printable characters"),
        ("x" * 201, [], "at most 200"),
        ("org/model@main", [], "no @"),
        ("delta:a..b", [], "names of differences"),
        ("two", ["other"], "give one reference"),
        ("listed", ["--from", "models.txt"], "of a single REF"),
    ],
)
def test_a_name_is_one_line_for_one_model(rmtscan: Run, tmp_path: Path, name: str, more: list[str], said: str) -> None:
    told = rmtscan("scan", "model", *more, "--name", name, "--store", tmp_path / "store")
    assert told.status in (1, 2)
    assert said in told.told
    assert not (tmp_path / "store").exists()


def test_some_that_failed_are_status_3_and_listed_now_and_later(rmtscan: Run, tmp_path: Path) -> None:
    broken: dict[str, Any] = tensors(layers=1)
    name = "model.layers.0.self_attn.q_proj.weight"
    broken[name][0, 0] = float("nan")
    model, store = checkpoint(tmp_path / "broken", broken), tmp_path / "store"
    for time in ("first", "again"):
        told = rmtscan("scan", model, "--store", store, *QUICK, "--format", "json")
        assert told.status == 3, time
        [row] = json.loads(told.out)
        assert (row["analysed"], row["skipped"], row["failed"]) == (3, 1, 1)
        assert f'1 FAILED; see: rmtscan sql "SELECT * FROM failures" --store {store}' in told.err
        assert (f"FAILED {name}" in told.err) is (time == "first")
    told = rmtscan("sql", "SELECT * FROM failures", "--store", store, "--format", "json")
    [failure] = json.loads(told.out)
    assert (failure["tensor"], failure["stage"]) == (name, "analyse")
    assert "1 NaN" in failure["message"]


def test_options_choose_the_method_and_the_matrices(rmtscan: Run, tmp_path: Path) -> None:
    named = tensors(layers=3, hidden=16) | {"model.embed_tokens.weight": weight(32, 16, 9)}
    model, store = checkpoint(tmp_path / "model", named), tmp_path / "store"
    options = ["--only", "query,embedding,mlp_up", "--layers", "0,2-2", "--embeddings", "--sigma", "bulk"]
    told = rmtscan("scan", model, "--store", store, *QUICK, *options, "--null", "mc:1000", "--format", "json")
    assert told.status == 0
    opened = open_store(str(store))
    [scan] = opened.sql("SELECT method FROM scans").to_pylist()
    method = json.loads(scan["method"])
    assert (method["sigma"], method["null"], method["layers"]) == ("bulk", "mc:1000", [0, 2])
    assert method["only"] == ["embedding", "mlp_up", "query"]
    rows = opened.sql("SELECT role, layer, sigma_kind FROM matrices ORDER BY role, layer").to_pylist()
    assert {(row["role"], row["layer"]) for row in rows} >= {
        (role, at) for role in ("query", "mlp_up") for at in (0, 2)
    }
    assert {row["layer"] for row in rows} <= {0, 2, None}
    assert {row["sigma_kind"] for row in rows} == {"bulk"}
    assert opened.sql("SELECT DISTINCT ensemble FROM controls")["ensemble"].to_pylist() == ["gaussian"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--roles", "query"], "--roles"),
        (["--heads"], "--heads"),
        (["--sigma", "median", "--force"], "--sigma, --force"),
    ],
)
def test_an_upgrade_refuses_options_that_it_would_not_heed(
    rmtscan: Run, tmp_path: Path, given: list[str], named: str
) -> None:
    ran = rmtscan("scan", "--upgrade", "--store", tmp_path / "store", *given)
    assert ran.status == 2
    assert f"with its own parameters: leave out {named}, or name checkpoints" in ran.told
    assert not (tmp_path / "store").exists()
