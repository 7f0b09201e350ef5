"""Scans with products of attention heads and head masses, one task at a time in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrix
from scanner.engine.method import Method
from scanner.engine.plan import task_memory
from scanner.engine.scan import ScanWork
from scanner.engine.tasks import bytes_of
from scanner.engine.work import Observer
from scanner.store import open_store
from tests.checkpoint.writing import checkpoint
from tests.faults.here import run_here

from .checkpoints import weight

HEADS, SHARED, WIDTH, HIDDEN = 4, 2, 8, 48


@pytest.fixture
def grouped(tmp_path: Path) -> str:
    shapes = {
        "q_proj": (HEADS * WIDTH, HIDDEN),
        "k_proj": (SHARED * WIDTH, HIDDEN),
        "v_proj": (SHARED * WIDTH, HIDDEN),
        "o_proj": (HIDDEN, HEADS * WIDTH),
    }
    tensors = {
        f"model.layers.{layer}.self_attn.{name}.weight": weight(*shape, 10 * layer + number)
        for layer in range(2)
        for number, (name, shape) in enumerate(shapes.items())
    }
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
        "head_dim": WIDTH,
    }
    return checkpoint(tmp_path / "model", tensors, config)


def scanned(
    monkeypatch: pytest.MonkeyPatch, folder: str, store: Path, method: Method
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of `matrices` and of `vectors`, with k ascending."""
    work = ScanWork(open_store(str(store), create=True), method, Observer(), ensembles=(), references=iter([folder]))
    run_here(monkeypatch, work)
    work.close()
    found = open_store(str(store))
    return (
        found.sql("select * from matrices").to_pylist(),
        found.sql("select * from vectors order by tensor, role, head, k").to_pylist(),
    )


def test_a_scan_has_a_row_for_each_head_and_product_with_the_numbers_of_numpy(
    grouped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices, vectors = scanned(monkeypatch, grouped, tmp_path / "store", Method(selection=Selection(products=True)))
    products = [row for row in matrices if row["role"] in ("qk", "ov")]
    assert len(matrices) == 8 + len(products)
    assert len(products) == 2 * 2 * HEADS
    opened = open_checkpoint(grouped)
    whole = {(ref.layer, ref.role): ref for ref in list_matrices(opened).matrices}
    for row in products:
        head, kv = row["head"], row["kv_head"]
        assert kv == head // 2
        assert row["between"] == ("rotary" if row["role"] == "qk" else None)
        q, k, v, o = (
            read_matrix(opened.source, whole[row["layer"], role]).double().numpy()
            for role in ("query", "key", "value", "attn_out")
        )
        mine, shared = slice(WIDTH * head, WIDTH * (head + 1)), slice(WIDTH * kv, WIDTH * (kv + 1))
        product = q[mine].T @ k[shared] if row["role"] == "qk" else o[:, mine] @ v[shared]
        u, s, _ = np.linalg.svd(product)
        place = (row["layer"], row["role"], head)
        triplets = [one for one in vectors if (one["layer"], one["role"], one["head"]) == place]
        assert [one["singular_value"] for one in triplets] == pytest.approx(s[:WIDTH], rel=1e-9)
        distance = kstest(u[:, 0] * np.sqrt(HIDDEN), "norm").statistic
        assert triplets[0]["u_ks"] == pytest.approx(distance, abs=1e-5)
        assert (row["rows"], row["cols"], row["rank"]) == (HIDDEN, HIDDEN, WIDTH)
        assert (row["svd_method"], row["sigma_kind"]) == ("product", "median")
        assert "product" in row["scale_failure"]
    # Both weights of a product are read, and a task needs no more memory than its weights.
    products_of_heads = [ref for ref in list_matrices(opened, Selection(products=True)).matrices if ref.factors]
    assert bytes_of(products_of_heads[:1]) == 4 * HIDDEN * WIDTH * (HEADS + SHARED)
    assert task_memory(products_of_heads)[1] == 4 * 8 * HIDDEN * WIDTH


def test_head_masses_are_stored_for_whole_projections_only(
    grouped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Method(head_mass=True, selection=Selection(products=True))
    matrices, vectors = scanned(monkeypatch, grouped, tmp_path / "store", method)
    sides = {row["role"]: row["heads_side"] for row in matrices}
    assert sides == {"query": "u", "key": "u", "value": "u", "attn_out": "v", "qk": None, "ov": None}
    table = [row for row in vectors if (row["layer"], row["role"]) == (0, "attn_out")]
    opened = open_checkpoint(grouped)
    [ref] = [ref for ref in list_matrices(opened).matrices if (ref.layer, ref.role) == (0, "attn_out")]
    v = np.linalg.svd(read_matrix(opened.source, ref).double().numpy(), full_matrices=False)[2]
    masses = (v**2).reshape(len(v), HEADS, WIDTH).sum(axis=2)
    assert [row["heads_effective"] for row in table] == pytest.approx(1 / np.sum(masses**2, axis=1), rel=1e-5)
    found = open_store(str(tmp_path / "store")).query("head_mass").to_pylist()
    assert {row["role"]: row["side"] for row in found} == {"query": "u", "key": "u", "value": "u", "attn_out": "v"}


def test_products_are_no_part_of_queries_of_counts_and_deciles(
    grouped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned(monkeypatch, grouped, tmp_path / "store", Method(selection=Selection(products=True)))
    store = open_store(str(tmp_path / "store"))
    assert len(store.query("head_products").to_pylist()) == 4 * HEADS
    assert len(store.query("head_products", role="qk").to_pylist()) == 2 * HEADS
    assert store.query("outlier_share", heads=True).num_rows == 0
    assert store.query("small_end", heads=True).num_rows == 0
    assert {row["role"] for row in store.query("head_trend").to_pylist()} == {"qk", "ov"}
    assert {row["role"] for row in store.query("layer_trend").to_pylist()} == {"query", "key", "value", "attn_out"}
