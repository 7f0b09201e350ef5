"""Products of attention heads, against the weights of live models and their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scanner.checkpoint import MatrixRef, Selection, list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.structure.products import is_head_norm, is_rotary
from scanner.checkpoint.structure.sizes import sizes_of
from scanner.errors import ScannerError
from scanner.rmt.decomposition import Product

from ..tiny_models import Built
from ..writing import checkpoint, reasons

Tiny = Callable[[str], Built]

PRODUCTS = Selection(products=True)


def products(built: Built, layer: int, role: str) -> list[MatrixRef]:
    return [ref for ref in list_matrices(built.opened, PRODUCTS).matrices if (ref.layer, ref.role) == (layer, role)]


def dense(built: Built, ref: MatrixRef) -> torch.Tensor:
    found = read_matrix(built.opened.source, ref)
    assert isinstance(found, Product)
    assert found.shape == (ref.rows, ref.cols)
    return found.left @ found.right


def test_products_of_grouped_queries_are_those_of_the_models_weights(tiny: Tiny) -> None:
    built = tiny("smollm")
    for layer, block in enumerate(built.model.layers):
        q, k, v, o = (
            getattr(block.self_attn, name).weight.detach().double() for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        )
        for role in ("qk", "ov"):
            found = products(built, layer, role)
            assert [ref.head for ref in found] == list(range(9))
            assert [ref.kv_head for ref in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
            assert {ref.between for ref in found} == {"rotary" if role == "qk" else None}
            for head, ref in enumerate(found):
                mine, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 3), 8 * (head // 3) + 8)
                truth = q[mine].T @ k[shared] if role == "qk" else o[:, mine] @ v[shared]
                assert torch.allclose(dense(built, ref), truth, atol=1e-12)


def test_products_of_a_fused_weight_give_the_scores_of_the_forward_pass(tiny: Tiny) -> None:
    built = tiny("gpt2")
    hidden = torch.randn(5, 24, dtype=torch.float64)
    for layer, block in enumerate(built.model.h):
        weight = block.attn.c_attn.weight.detach().double()  # (in, out)
        q, k, _ = (hidden @ weight).split(24, dim=1)
        found = products(built, layer, "qk")
        assert len(found) == 3
        for head, ref in enumerate(found):
            cut = slice(8 * head, 8 * head + 8)
            assert torch.allclose(hidden @ dense(built, ref) @ hidden.T, q[:, cut] @ k[:, cut].T, atol=1e-12)
            assert ref.between is None


@pytest.mark.parametrize(
    ("name", "between"),
    [
        ("bert", None),
        ("opt", None),
        ("gpt_neox", "rotary"),
        ("codegen", "rotary"),
        ("falcon", "rotary"),
        ("falcon_many", None),
        ("qwen2", "rotary"),
        ("qwen3", "rotary,norm"),
        ("modernbert", "rotary"),
        ("bloom", None),
    ],
)
def test_what_is_between_queries_and_keys_is_marked(tiny: Tiny, name: str, between: str | None) -> None:
    assert {ref.between for ref in products(tiny(name), 1, "qk")} == {between}
    assert {ref.between for ref in products(tiny(name), 1, "ov")} == {None}


def test_selections(tiny: Tiny) -> None:
    opened = tiny("smollm").opened
    without = list_matrices(opened, Selection())
    both = list_matrices(opened, PRODUCTS)
    assert both.matrices[: len(without.matrices)] == without.matrices
    assert reasons(both) == reasons(without)
    only = list_matrices(opened, Selection(only=("ov",), layers=(1,)))
    assert Counter((ref.role, ref.layer) for ref in only.matrices) == {("ov", 1): 9}
    used = {factor.tensor for ref in only.matrices for factor in ref.weights}
    assert not used & reasons(only).keys()
    # every tensor is accounted for once
    assert used | reasons(only).keys() == {entry.name for entry in opened.tensors}
    heads = Counter(ref.role for ref in list_matrices(opened, Selection(heads=True, products=True)).matrices)
    assert heads == {"query": 18, "key": 6, "value": 6, "attn_out": 18, "qk": 18, "ov": 18}
    keys = [ref.key for ref in both.matrices]
    assert len(set(keys)) == len(keys)
    with pytest.raises(ScannerError, match="which `roles` leaves out"):
        Selection(only=("query",), products=True)
    assert Selection(only=("qk", "query"), products=True).without_products() == Selection(only=("query",))


def test_a_model_without_products_says_why(tmp_path: Path) -> None:
    shapes = {"q_proj": (8, 8), "k_proj": (8, 8), "v_proj": (8, 8), "o_proj": (8, 8)}
    tensors = {f"model.layers.0.self_attn.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    wanted = Selection(only=("qk", "ov"))
    unknown = open_checkpoint(checkpoint(tmp_path / "unknown", tensors, {"model_type": "llama"}))
    found = list_matrices(unknown, wanted)
    assert not found.matrices
    assert set(reasons(found).values()) == {
        "query: config.json does not say how many heads there are",
        "attn_out: config.json does not say how many heads there are",
    }
    config = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8}
    lone = {name: weight for name, weight in tensors.items() if "k_proj" not in name}
    found = list_matrices(open_checkpoint(checkpoint(tmp_path / "lone", lone, config)), wanted)
    assert {ref.role for ref in found.matrices} == {"ov"}
    assert reasons(found) == {"model.layers.0.self_attn.q_proj.weight": "qk: the block has 1 query and 0 key"}


def test_whole_projections_know_their_number_of_heads(tiny: Tiny) -> None:
    refs = list_matrices(tiny("smollm").opened, Selection(layers=(0,))).matrices
    assert {ref.role: ref.heads for ref in refs if ref.heads} == {"query": 9, "key": 3, "value": 3, "attn_out": 9}


@pytest.mark.parametrize(
    ("section", "layer", "expected"),
    [
        ({"model_type": "llama"}, 0, True),
        ({"model_type": "bert"}, 0, False),
        ({"rope_theta": 10000.0}, 0, True),
        ({"rope_theta": 10000.0, "no_rope_layers": [1, 0]}, 0, True),
        ({"rope_theta": 10000.0, "no_rope_layers": [1, 0]}, 1, False),
        ({"rotary_emb_base": 10000, "rotary_emb_fraction": 0.0}, 0, False),
        ({"position_embedding_type": "absolute", "rope_theta": 1.0}, 0, False),
        ({"position_embedding_type": "rotary"}, 0, True),
        ({"model_type": "falcon", "alibi": True}, 0, False),
        ({"global_rope_theta": 160000.0}, 0, True),
        ({"gguf": {"general.architecture": "smollm", "smollm.rope.freq_base": 10000.0}}, 0, True),
        ({"europe": 3}, 0, False),
    ],
)
def test_rotary_embeddings_are_recognized(section: dict[str, object], layer: int, expected: bool) -> None:
    assert is_rotary(section, sizes_of(section, "model.layers"), layer) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_norm.weight", True),
        ("model.layers.0.self_attn.k_layernorm.weight", True),
        ("blk.3.attn_k_norm.weight", True),
        ("model.layers.0.self_attn.q_a_layernorm.weight", False),
        ("model.layers.0.input_layernorm.weight", False),
        ("model.layers.0.attention.query_norm.weight", True),
    ],
)
def test_norms_of_queries_and_keys_are_recognized_by_name(name: str, expected: bool) -> None:
    assert is_head_norm(name) is expected


def test_products_of_a_gguf_file_are_those_of_its_rows_whose_rotary_order_cancels(smollm2: Path) -> None:
    """Rows of queries and keys are reordered in the file, alike in both: their product does not depend on it."""
    from gguf import GGUFReader, dequantize

    stored = {one.name: one for one in GGUFReader(smollm2).tensors}
    q, k = (
        dequantize(stored[f"blk.7.{name}.weight"].data, stored[f"blk.7.{name}.weight"].tensor_type).astype(np.float64)
        for name in ("attn_q", "attn_k")
    )
    opened = open_checkpoint(str(smollm2))
    found = list_matrices(opened, Selection(only=("qk",), layers=(7,))).matrices
    assert [(ref.head, ref.kv_head, ref.between) for ref in found] == [(h, h // 3, "rotary") for h in range(9)]
    for ref in (found[0], found[8]):
        assert ref.head is not None
        assert ref.kv_head is not None
        truth = q[64 * ref.head :][:64].T @ k[64 * ref.kv_head :][:64]
        product = read_matrix(opened.source, ref)
        assert isinstance(product, Product)
        assert (product.left @ product.right).numpy() == pytest.approx(truth, abs=1e-6 * np.abs(truth).max())
