"""What `rmtscan inspect` tells: every tensor, from headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from wcwidth import wcswidth

from scanner.checkpoint.sources.files import LocalFiles
from scanner.store import open_store
from tests.checkpoint.writing import checkpoint
from tests.store.rows import Matrix, add_scan

from .conftest import Run

LAYERS = 120
EMBEDDING = torch.randn(12, 4)
MODEL = {
    "model.embed_tokens.weight": EMBEDDING,
    "lm_head.weight": EMBEDDING.clone(),
    **{f"model.layers.{layer}.self_attn.q_proj.weight": torch.zeros(6, 4) for layer in range(LAYERS)},
    **{f"model.layers.{layer}.mlp.shared_expert.up_proj.weight": torch.zeros(8, 4) for layer in range(LAYERS)},
    **{f"model.layers.{layer}.input_layernorm.weight": torch.zeros(4) for layer in range(LAYERS)},
    "odd\x1b[31m.name\u202e\n": torch.zeros(2, 2, 2),
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = checkpoint(tmp_path / "model", MODEL)
    monkeypatch.setattr(LocalFiles, "read_ranges", lambda self, ranges: pytest.fail("a weight was read"))
    return folder


def test_the_table_shows_every_matrix_and_every_skipped_tensor(rmtscan: Run, model: str) -> None:
    told = rmtscan("inspect", model, "--all")
    lines = told.out.decode().splitlines()
    assert told.status == 0
    assert len(lines) == 2 + len(MODEL)
    assert all(line.isprintable() for line in lines)
    for name in MODEL:
        shown = name.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e").replace("\n", r"\n")
        assert sum(line.startswith(shown + " ") for line in lines) == 1
    assert len({line.index(" query ") for line in lines if " query " in line}) == 1  # columns stand under each other
    for reason, count in {
        "1-D: not a matrix": 120,
        "3-D: not a matrix": 1,
        "lm_head: ask with --embeddings": 1,
    }.items():
        assert f"  {count} skipped: {reason}" in told.err.splitlines()
        assert sum(reason in line for line in lines) == count
    assert "240 matrices to analyze" in told.err
    assert "123 tensors skipped" in told.err


def test_fewer_rows_and_columns_of_the_other_table_say_what_to_do(rmtscan: Run, model: str) -> None:
    for more in ((), ("--all",)):
        told = rmtscan("inspect", model, "--rows", 1, *more)
        assert told.status == 0
        assert "in all; a larger --rows prints them" in told.err, "--all would list the tensors"
    told = rmtscan("inspect", model, "--columns", "tensor,rows")
    shown = " ".join(told.err.replace("│", " ").split())
    assert (told.status, "the table of roles (--all: the list of tensors) has no column 'tensor'" in shown) == (2, True)
    assert rmtscan("inspect", model, "--all", "--columns", "tensor,rows").status == 0


def test_the_answer_comes_first_by_role_and_by_reason(
    rmtscan: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = rmtscan("inspect", model)
    lines = told.out.decode().splitlines()
    assert (told.status, max(map(wcswidth, lines))) == (0, 80)
    assert all(line.isprintable() for line in lines)
    assert " ".join(lines[: lines.index("")]).endswith(
        f"{sum(tensor.numel() for tensor in MODEL.values()):,} parameters (F32)"
    )
    words = [line.split() for line in lines]
    rows = {line[0]: line for line in words if line}
    assert rows["mlp_up"][1:3] == ["120", "8×4"]
    assert rows["query"][1:3] == ["120", "6×4"]
    assert rows["total"][1] == "240"
    cost = {"mlp_up": 16 * (24 + 36) / 1e9, "query": 16 * (18 + 36) / 1e9}
    for role, of_one in cost.items():
        assert float(rows[role][3]) == pytest.approx(120 * of_one, rel=5e-3)
        assert float(rows[role][4]) == pytest.approx(100 * of_one / sum(cost.values()), rel=5e-3)
        seconds = 120 * (1e9 * of_one + 800 * 4 * (4 + int(rows[role][2][0])) + 1.5e8) / 2e10
        assert float(rows[role][5]) == pytest.approx(seconds, rel=5e-3)
    skipped = [" ".join(line) for line in words[words.index(rows["total"]) + 1 :]]
    assert skipped[3].startswith("120 1-D: not a matrix model.layers.0")
    assert sum("ask with --embeddings" in line for line in skipped) == 2
    assert skipped[-1] == "123 total"
    assert "240 matrices to analyze" in told.err
    assert "--all lists every tensor" in told.err


def test_every_matrix_has_its_module_and_its_cost(rmtscan: Run, model: str) -> None:
    rows = json.loads(rmtscan("inspect", model, "--format", "json").out)
    assert {row["tensor"].replace(r"\x1b", "\x1b") for row in rows} >= {name for name in MODEL if name.isprintable()}
    matrices = [row for row in rows if row["skipped"] is None]
    assert {(row["role"], row["module"], row["rows"], row["cols"]) for row in matrices} == {
        ("query", None, 6, 4),
        ("mlp_up", "shared_expert", 8, 4),
    }
    costs = {row["role"]: row["cost_gflop"] for row in matrices}
    assert costs == pytest.approx({"query": 16 * (18 + 36) / 1e9, "mlp_up": 16 * (24 + 36) / 1e9})
    assert sum(row["cost_percent"] for row in matrices) == pytest.approx(100)
    assert all(row["cost_gflop"] is None for row in rows if row["skipped"])


def test_embeddings_are_not_compared_and_it_is_said_that_they_may_be_tied(rmtscan: Run, model: str) -> None:
    told = rmtscan("inspect", model, "--embeddings", "--format", "json")
    roles = [row["role"] for row in json.loads(told.out)]
    assert (told.status, roles.count("embedding"), roles.count("lm_head")) == (0, 1, 1)
    assert "lm_head.weight may be tied with model.embed_tokens.weight" in told.err
    (Path(model) / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    told = rmtscan("inspect", model, "--embeddings", "--format", "json")
    assert "lm_head" not in [row["role"] for row in json.loads(told.out)]
    assert "may be tied" not in told.err
    assert "1 skipped: tied with model.embed_tokens.weight" in told.err


def test_models_that_the_folder_also_holds_are_mentioned_with_their_command(rmtscan: Run, tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", {"encoder.layer.0.attention.self.query.weight": torch.zeros(4, 4)})
    dense = checkpoint(tmp_path / "model" / "2_Dense", {"linear.weight": torch.zeros(2, 4)})
    told = rmtscan("inspect", str(tmp_path / "model"))
    assert (told.status, f"rmtscan scan {dense}" in told.err) == (0, True)


def test_the_speed_of_earlier_scans_gives_the_expected_time(rmtscan: Run, model: str, tmp_path: Path) -> None:
    def units(rows: int, cols: int) -> float:
        lo, hi = sorted((rows, cols))
        return float(lo**2 * (3 * hi + 9 * lo) + 800 * lo * (lo + hi) + 1.5e8)

    store = open_store(str(tmp_path / "store"), create=True)
    told = rmtscan("inspect", model, "--store", store.url)
    assert f"at 2.0e+10 units/s, because {store.url} has no scan on a CPU, without" in told.err
    shapes = {(4, 4): 0.25, (8, 4): 0.5}
    rows = [
        Matrix(tensor=f"m{i}", rows=shape[0], cols=shape[1], more={"device": "cpu", "seconds": seconds})
        for i, (shape, seconds) in enumerate(shapes.items())
    ]
    rows.append(Matrix(tensor="gpu", more={"device": "cuda", "seconds": 100.0}))
    rows.append(Matrix(tensor="head", head=1, more={"device": "cpu", "seconds": 100.0}))
    add_scan(store, "a", rows)
    rate = sum(units(*shape) for shape in shapes) / sum(shapes.values())
    told = rmtscan("inspect", model, "--store", store.url)
    assert f"{rate:.1e} units/s, the speed of 2 matrices in {store.url}" in told.err
    words = [line.split() for line in told.out.decode().splitlines()]
    seconds = next(float(line[-1]) for line in words if line and line[0] == "query")
    assert seconds == pytest.approx(120 * units(6, 4) / rate, rel=5e-3)
