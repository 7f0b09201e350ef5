"""`rmtscan compare` from its arguments to its summary and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.checkpoint.writing import checkpoint
from tests.engine.checkpoints import small, tensors, weight

from .conftest import Run

pytestmark = pytest.mark.usefixtures("local_ray")

CONFIG = {"architectures": ["LlamaForCausalLM"]}
QUERY = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


def pair(folder: Path) -> tuple[str, str, Path]:
    """A base of one layer, and a tuned one: the query is changed, the down-projection broken, the rest untouched."""
    changed = dict(tensors(layers=1))
    changed[QUERY] = changed[QUERY] + 0.1 * weight(24, 24, 5)
    changed[DOWN] = torch.full_like(changed[DOWN], float("inf"))
    return small(folder / "base", layers=1), checkpoint(folder / "tuned", changed, CONFIG), folder / "store"


def test_a_line_a_role_is_on_stdout_and_what_was_not_compared_is_told(rmtscan: Run, tmp_path: Path) -> None:
    base, tuned, store = pair(tmp_path)
    told = rmtscan("compare", base, tuned, "--store", store, "--workers", "1", "--format", "json")
    rows = {row["role"]: row for row in json.loads(told.out)}
    assert set(rows) == {"query", "key", "mlp_up"}
    assert (rows["query"]["identical"], rows["key"]["identical"]) == (0, 1)
    assert rows["query"]["change_max"] > 0.05
    assert "3 pairs of matrices compared; 2 exactly unchanged" in told.err
    assert f"relative change: median 0, largest {rows['query']['change_max']:.3g} (layer 0, query)" in told.told
    assert f"FAILED: {DOWN}" in told.told
    assert "model.layers.0.self_attn.k_proj.weight" in told.err
    assert told.status == 3

    again = rmtscan("compare", "base", "tuned", "--store", store, "--format", "json")
    assert (again.status, json.loads(again.out)) == (3, json.loads(told.out))
    assert "3 pairs of matrices compared (already in the store)" in again.err
    shorter = rmtscan("compare", "bas", "TUN", "--store", store, "--format", "json")
    assert (shorter.status, json.loads(shorter.out)) == (3, json.loads(told.out))
    several = rmtscan("compare", "e", "tuned", "--store", store)
    assert (several.status, several.errors) == (1, ["error: 'e' is part of 2 names: choose one of base, tuned"])
    wrong = rmtscan("compare", "base", "tuned", "--store", store, "--null", "guess")
    assert wrong.status == 2
    assert "--null" in wrong.told


def test_models_that_were_scanned_by_heads_are_compared_by_heads(rmtscan: Run, tmp_path: Path) -> None:
    config = CONFIG | {"num_attention_heads": 4, "hidden_size": 24}
    before = tensors(layers=1)
    changed = before | {QUERY: before[QUERY] + 0.1 * weight(24, 24, 5)}
    folders = [checkpoint(tmp_path / name, made, config) for name, made in (("base", before), ("tuned", changed))]
    where = ("--store", tmp_path / "store", "--workers", "1", "--format", "json")
    assert rmtscan("scan", *folders, *where, "--heads", "--only", "query", "--null", "mc:200").status == 0
    told = rmtscan("compare", "base", "tuned", *where)
    assert told.status == 0
    assert [(row["role"], row["matrices"]) for row in json.loads(told.out)] == [("query", 4)]
    assert "relative change: median" in told.told
    assert "(layer 0, query, head " in told.told


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (("base", "base"), "the same checkpoint"),
        (("base", "nowhere"), "nowhere does not exist"),
        (("base", "other"), "nothing in common"),
    ],
)
def test_no_pair_is_one_line_and_status_1(rmtscan: Run, tmp_path: Path, named: tuple[str, str], said: str) -> None:
    small(tmp_path / "base", layers=1)
    checkpoint(tmp_path / "other", {"x.weight": weight(3, 3, 0)}, CONFIG)
    told = rmtscan("compare", *(tmp_path / name for name in named), "--store", tmp_path / "store")
    assert told.status == 1
    assert [said in line for line in told.errors] == [True]
