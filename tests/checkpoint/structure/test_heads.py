"""One matrix per attention head, against the live model's weights and what its forward pass makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scanner.checkpoint import Inventory, Selection, list_matrices, open_checkpoint, read_matrix

from ..tiny_models import Built
from ..writing import checkpoint, reasons

Tiny = Callable[[str], Built]

HEADS = Selection(heads=True)


def heads_of(built: Built, layer: int, role: str, **place: object) -> list[torch.Tensor]:
    """The heads' matrices of one projection, in their order."""
    refs = [
        ref
        for ref in list_matrices(built.opened, HEADS).matrices
        if (ref.layer, ref.role) == (layer, role) and all(getattr(ref, key) == value for key, value in place.items())
    ]
    assert [ref.head for ref in refs] == list(range(len(refs)))
    return [read_matrix(built.opened.source, ref) for ref in refs]  # type: ignore[misc]


def counts(inventory: Inventory, layer: int = 1) -> dict[str, int]:
    return dict(Counter(ref.role for ref in inventory.matrices if ref.layer == layer))


def test_a_llama_with_grouped_queries_has_as_many_heads_of_each_role_as_its_config_says(tiny: Tiny) -> None:
    built = tiny("smollm")
    assert counts(list_matrices(built.opened, HEADS)) == {"query": 9, "key": 3, "value": 3, "attn_out": 9}
    for layer, block in enumerate(built.model.layers):
        attention = block.self_attn
        for role, weight, count in (
            ("query", attention.q_proj.weight, 9),
            ("key", attention.k_proj.weight, 3),
            ("value", attention.v_proj.weight, 3),
        ):
            for head, found in enumerate(heads_of(built, layer, role)):
                assert torch.equal(found, weight.detach().view(count, 8, 72)[head])
        for head, found in enumerate(heads_of(built, layer, "attn_out")):
            assert torch.equal(found, attention.o_proj.weight.detach().view(72, 9, 8)[:, head])


def test_heads_of_a_fused_weight_are_those_of_the_models_forward_pass(tiny: Tiny) -> None:
    built = tiny("gpt_neox")
    for layer, block in enumerate(built.model.layers):
        hidden = torch.randn(5, 24)
        states = block.attention.query_key_value(hidden).view(5, 6, 3 * 4).detach()
        for role, state in zip(("query", "key", "value"), states.chunk(3, dim=-1), strict=True):
            for head, found in enumerate(heads_of(built, layer, role)):
                torch.testing.assert_close(hidden @ found.T, state[:, head])


def test_the_outputs_of_all_heads_add_up_to_that_of_the_attention(tiny: Tiny) -> None:
    for name, width in (("gpt2", 24), ("llama", 60), ("falcon_grouped", 24)):
        built = tiny(name)
        mixed = torch.randn(3, width)
        blocks = built.model.layers if name == "llama" else built.model.h
        for layer, block in enumerate(blocks):
            output = {"gpt2": "attn.c_proj", "llama": "self_attn.o_proj", "falcon_grouped": "self_attention.dense"}[
                name
            ]
            found = heads_of(built, layer, "attn_out")
            parts = mixed.chunk(len(found), dim=1)
            total = sum(part @ head.T for part, head in zip(parts, found, strict=True))
            torch.testing.assert_close(total, block.get_submodule(output)(mixed).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", {"query": 3, "key": 3, "value": 3, "attn_out": 3}),
        ("falcon", {"query": 6, "key": 1, "value": 1, "attn_out": 6}),
        ("falcon_grouped", {"query": 6, "key": 2, "value": 2, "attn_out": 6}),
        ("phi3", {"query": 6, "key": 3, "value": 3, "attn_out": 6}),
        ("dbrx", {"query": 6, "key": 3, "value": 3, "attn_out": 6}),
        ("distilbert", {"query": 3, "key": 3, "value": 3, "attn_out": 3}),
        ("qwen3_next", {"query": 6, "key": 3, "value": 3, "attn_out": 6}),
        ("deepseek_v3", {"query": 6, "key": 6, "value": 6, "attn_out": 6}),
        ("gpt_bigcode", {"query": 3, "key": 1, "value": 1, "attn_out": 3}),
    ],
)
def test_keys_and_values_have_their_own_number_of_heads(tiny: Tiny, name: str, expected: dict[str, int]) -> None:
    assert counts(list_matrices(tiny(name).opened, HEADS)) == expected


def test_each_stack_has_the_heads_that_its_part_of_the_config_says(tiny: Tiny) -> None:
    found = {
        name: Counter(
            (ref.stack, ref.module) for ref in list_matrices(tiny(name).opened, HEADS).matrices if not ref.layer
        )
        for name in ("clip", "whisper", "moonshine", "gemma3", "t5")
    }
    cross = ("decoder", "cross_attention")
    assert found["clip"] == {("encoder", None): 4 * 6, ("vision", None): 4 * 4}
    assert found["whisper"] == {("encoder", None): 4 * 3, ("decoder", None): 4 * 4, cross: 4 * 4}
    assert found["moonshine"] == {("encoder", None): 4 * 3, ("decoder", None): 4 * 3, cross: 4 * 3}
    assert found["t5"] == {("encoder", None): 4 * 3, ("decoder", None): 4 * 3, cross: 4 * 3}
    # Twice for the vision tower: once in a block and once in the head that pools.
    assert found["gemma3"] == {("decoder", None): 2 * 6 + 2 * 3, ("vision", None): 2 * 4 * 4}


def test_heads_of_latent_attention_are_cut_from_what_the_latents_are_expanded_to(tiny: Tiny) -> None:
    built = tiny("deepseek_v3")
    for layer, block in enumerate(built.model.layers):
        attention = block.self_attn
        expanded = attention.kv_b_proj.weight.detach().view(6, 7 + 5, 13)
        for head in range(6):
            assert torch.equal(heads_of(built, layer, "key", module="mla_b")[head], expanded[head, :7])
            assert torch.equal(heads_of(built, layer, "value", module="mla_b")[head], expanded[head, 7:])
            query = attention.q_b_proj.weight.detach().view(6, 7 + 4, 11)[head]
            assert torch.equal(heads_of(built, layer, "query", module="mla_b")[head], query)
            out = attention.o_proj.weight.detach().view(24, 6, 5)[:, head]
            assert torch.equal(heads_of(built, layer, "attn_out")[head], out)


def test_what_has_no_heads_is_skipped_and_says_so(tiny: Tiny) -> None:
    for name in ("smollm", "deepseek_v3", "t5", "bert"):
        opened = tiny(name).opened
        whole = list_matrices(opened)
        by_head = list_matrices(opened, HEADS)
        left_out = {ref.tensor for ref in whole.matrices} - {ref.tensor for ref in by_head.matrices}
        assert {reasons(by_head)[tensor] for tensor in left_out} == {"not split by heads: scan without --heads"}
    assert any("kv_a_proj" in tensor for tensor in reasons(list_matrices(tiny("deepseek_v3").opened, HEADS)))


def test_a_selection_of_roles_and_layers_holds_for_heads(tiny: Tiny) -> None:
    opened = tiny("smollm").opened
    inventory = list_matrices(opened, Selection(heads=True, only=("key",), layers=(1,)))
    assert [(ref.role, ref.layer, ref.head) for ref in inventory.matrices] == [("key", 1, head) for head in range(3)]
    inventory = list_matrices(opened, Selection(heads=True, only=("mlp_up",)))
    assert inventory.matrices == ()


LLAMA = {"model_type": "llama", "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
PROJECTIONS = {
    "model.layers.0.self_attn.q_proj.weight": torch.ones(24, 24),
    "model.layers.0.self_attn.k_proj.weight": torch.ones(8, 24),
}


@pytest.mark.parametrize(
    ("lie", "query", "key"),
    [
        (
            {"num_attention_heads": 5},
            "query: 24 rows are not the 5 heads of unknown width",
            "key: 8 rows are not the 2",
        ),
        ({"num_key_value_heads": 6}, None, "key: 8 rows are not the 6 heads of 4 that config.json describes"),
        ({"head_dim": 5}, "query: 24 rows are not the 6 heads of 5 ", "key: 8 rows are not the 2 heads of 5 "),
        ({"num_attention_heads": None}, "query: config.json does not say how many heads", "key: 8 rows"),
        ({"num_attention_heads": [6, 6], "num_key_value_heads": [2, 2]}, None, None),
        ({"hidden_size": {"a": 1}}, "query: 24 rows are not the 6 heads of unknown width", "key: 8 rows"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_leaves_them_out(
    tmp_path: Path, lie: dict[str, Any], query: str | None, key: str | None
) -> None:
    inventory = list_matrices(open_checkpoint(checkpoint(tmp_path, PROJECTIONS, LLAMA | lie)), HEADS)
    for name, reason in zip(PROJECTIONS, (query, key), strict=True):
        assert (name in reasons(inventory)) is (reason is not None)
        assert reasons(inventory).get(name, "").startswith(reason or "")


def test_without_a_config_there_are_no_heads(tmp_path: Path) -> None:
    inventory = list_matrices(open_checkpoint(checkpoint(tmp_path, PROJECTIONS)), HEADS)
    assert inventory.matrices == ()
    assert all(
        reason.endswith("config.json does not say how many heads there are") for reason in reasons(inventory).values()
    )


def test_absurdly_many_heads_are_refused(tmp_path: Path) -> None:
    config = {"model_type": "x", "hidden_size": 5000, "num_attention_heads": 5000}
    weights = {"model.layers.0.self_attn.q_proj.weight": torch.ones(5000, 1)}
    assert list_matrices(open_checkpoint(checkpoint(tmp_path, weights, config)), HEADS).matrices == ()
