"""What the scanner makes of a saved model, against the live model: its modules, and what its own forward pass computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from scanner.checkpoint import MatrixRef, Selection, list_matrices, read_matrix

from ..tiny_models import CASES, Built, expected_roles, live_matrices

Tiny = Callable[[str], Built]

TOKENS = torch.tensor([[3], [4], [5], [7]])  # one token each: at position 0 a rotary embedding turns nothing


@pytest.mark.parametrize("name", CASES)
def test_roles_and_layers_are_those_of_the_models_modules(tiny: Tiny, name: str) -> None:
    built = tiny(name)
    refs = built.inventory.matrices
    in_blocks = Counter((ref.stack, ref.layer, ref.role) for ref in refs if ref.layer is not None)
    assert in_blocks == expected_roles(built.case)
    assert Counter(ref.role for ref in refs if ref.layer is None) == Counter(built.case.outside.split())


@pytest.mark.parametrize("name", CASES)
def test_as_many_matrices_as_the_live_model_has_and_with_the_same_rows(tiny: Tiny, name: str) -> None:
    built = tiny(name)
    live = dict(live_matrices(built.model))
    counts = [next((n for end, n in built.case.fused.items() if module.endswith(end)), 1) for module in live]
    assert len(built.inventory.matrices) == sum(counts)
    found = Counter(row for ref in built.inventory.matrices for row in rows(read(built, ref)))
    assert found == Counter(row for weight in live.values() for row in rows(weight.detach()))


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_accounted_for_once_and_every_matrix_has_its_own_key(
    tiny: Tiny, name: str, heads: bool
) -> None:
    opened = tiny(name).opened
    inventory = list_matrices(opened, Selection(heads=heads, embeddings=not heads))
    analyzed = {ref.entry.name for ref in inventory.matrices}
    skipped = [skipped.tensor for skipped in inventory.skipped]
    assert sorted([*analyzed, *skipped]) == sorted(entry.name for entry in opened.tensors)
    assert len({ref.key for ref in inventory.matrices}) == len(inventory.matrices)
    for ref in inventory.matrices:
        assert tuple(read_matrix(opened.source, ref).shape) == (ref.rows, ref.cols)


SPIED = "modernbert gpt2 gpt2_square gpt_bigcode gpt_bigcode_many gpt_neox phi3 smollm llama dbrx aria_text granitemoeshared"


@pytest.mark.parametrize("name", SPIED.split())
def test_query_key_and_value_are_those_that_attention_is_given(tiny: Tiny, name: str) -> None:
    built = tiny(name)
    with attention_inputs(built.model) as calls:
        run(built.model)
    assert len(calls) == 2
    for layer, (hidden, query, key, value) in enumerate(calls):
        for role, states in (("query", query), ("key", key), ("value", value)):
            # (tokens, heads, 1, head_dim)
            assert_equal(projected(built, hidden, layer, role), states.flatten(1))


def test_query_key_and_value_are_split_as_bloom_and_falcon_split_them(tiny: Tiny) -> None:
    for name in ("bloom", "falcon", "falcon_grouped", "falcon_many"):
        built = tiny(name)
        for layer, block in enumerate(built.model.h):
            attention = block.self_attention
            hidden = torch.randn(4, 1, 24)
            split = getattr(attention, "_split_heads", None) or attention._reshape
            # Falcon repeats the keys and values that several heads share, Bloom puts heads before tokens.
            states = dict(zip(("query", "key", "value"), split(attention.query_key_value(hidden)), strict=True))
            for role, state in states.items():
                found = projected(built, hidden[:, 0], layer, role)
                state = state if name.startswith("falcon") else state.transpose(1, 2)
                flat = state.reshape(4, -1, 8 if name == "bloom" else 4)
                assert_equal(found, flat[:, :: flat.shape[1] * flat.shape[2] // found.shape[1]].flatten(1))


def test_query_key_and_value_are_those_that_mpt_and_codegen_multiply(tiny: Tiny) -> None:
    for name in ("mpt", "codegen"):
        built = tiny(name)
        with products() as calls, inputs_of(built.model, "Wqkv", "qkv_proj") as hiddens:
            run(built.model)
        # Two products a block: queries with keys, weights with values.
        for layer, hidden in enumerate(hiddens):
            (query, key), (_, value) = calls[2 * layer : 2 * layer + 2]
            for role, states in (("query", query), ("key", key.transpose(-1, -2)), ("value", value)):
                assert_equal(projected(built, hidden[:, 0], layer, role), states.flatten(1))


def test_the_factors_of_latent_attention_make_the_keys_and_values_that_attention_is_given(tiny: Tiny) -> None:
    built = tiny("deepseek_v3")
    factors = ("q_b_proj", "kv_b_proj", "kv_a_proj_with_mqa", "q_a_proj")
    with attention_inputs(built.model) as calls, inputs_of(built.model, *factors) as hiddens:
        run(built.model)
    for layer, (_, query, key, value) in enumerate(calls):
        q_a, q_b, kv_a, kv_b = hiddens[4 * layer : 4 * layer + 4]
        found = projected(built, q_b[:, 0], layer, "query", "mla_b").view(4, 6, 1, 7 + 4)
        assert_equal(found[..., :7], query[..., :7])
        # The rotary embedding puts the first of every pair before the second ones.
        assert_equal(found[..., [7, 9, 8, 10]], query[..., 7:])
        assert_equal(projected(built, kv_b[:, 0, 0], layer, "key", "mla_b"), key[..., :7].flatten(1))
        assert_equal(projected(built, kv_b[:, 0, 0], layer, "value", "mla_b"), value.flatten(1))
        assert projected(built, q_a[:, 0], layer, "query", "mla_a").shape == (4, 11)
        assert projected(built, kv_a[:, 0], layer, "key", "mla_a").shape == (4, 13 + 4)


def test_queries_are_told_from_the_gates_that_share_their_weight(tiny: Tiny) -> None:
    built = tiny("qwen3_next")
    hidden = torch.randn(4, 24)
    for layer, block in enumerate(built.model.layers):
        states = block.self_attn.q_proj(hidden).view(4, 6, 2 * 10)
        for role, state in zip(("query", "other"), states.chunk(2, dim=-1), strict=True):
            assert_equal(projected(built, hidden, layer, role), state.flatten(1))


@pytest.mark.parametrize(
    ("name", "activation", "down"),
    [
        ("phi3", "activation_fn", "down_proj"),
        ("modernbert", "act", "Wo"),
        ("granitemoeshared", "activation", "output_linear"),
        ("moonshine", "activation_fn", "fc2"),
    ],
)
def test_of_a_gated_mlp_the_gate_goes_through_the_activation(tiny: Tiny, name: str, activation: str, down: str) -> None:
    built = tiny(name)
    blocks = built.model.decoder.layers if name == "moonshine" else built.model.layers
    for layer, block in enumerate(blocks):
        mlp = block.shared_mlp if name == "granitemoeshared" else block.mlp
        hidden = torch.randn(4, 24)
        with (
            inputs_of(mlp, activation, leaf=False) as activated,
            outputs_of(mlp, activation) as gates,
            inputs_of(mlp, down) as multiplied,
        ):
            mlp(hidden)
        place = {
            "module": "shared_expert" if name == "granitemoeshared" else None,
            "stack": "decoder" if name == "moonshine" else None,
        }
        assert_equal(projected(built, hidden, layer, "mlp_gate", **place), activated[0])
        assert_equal(projected(built, hidden, layer, "mlp_up", **place) * gates[0], multiplied[0])


@pytest.mark.parametrize(
    "name",
    "mixtral qwen3_moe qwen3_next deepseek_v3 gpt_oss gpt_oss_square llama4_text aria_text granitemoeshared".split(),
)
def test_experts_are_those_that_the_model_gives_the_number(tiny: Tiny, name: str) -> None:
    built = tiny(name)
    stacks = {
        int(module_name.split(".")[1]): module
        for module_name, module in built.model.named_modules()
        if type(module).__name__.endswith("Experts")
    }
    assert stacks
    for layer, module in stacks.items():
        for expert, (fused, down) in enumerate(zip(module.gate_up_proj, module.down_proj, strict=True)):
            if name.startswith(("gpt_oss", "llama4", "aria")):
                fused, down = fused.T, down.T
            gate, up = (fused[::2], fused[1::2]) if name.startswith("gpt_oss") else fused.chunk(2)
            for role, weight in (("mlp_gate", gate), ("mlp_up", up), ("mlp_down", down)):
                assert torch.equal(read(built, find(built, layer, role, expert=expert)), weight.detach())


def test_experts_in_the_rows_of_one_matrix_are_told_apart(tiny: Tiny) -> None:
    built = tiny("dbrx")
    for layer, block in enumerate(built.model.blocks):
        glu = block.ffn.experts.mlp
        for expert in range(5):
            weights = {
                "mlp_gate": glu.w1.chunk(5)[expert],
                "mlp_up": glu.v1.chunk(5)[expert],
                "mlp_down": glu.w2.chunk(5)[expert].T,
            }
            for role, weight in weights.items():
                assert torch.equal(read(built, find(built, layer, role, expert=expert)), weight.detach())


def test_an_expert_costs_its_own_bytes_only(tiny: Tiny) -> None:
    built = tiny("gpt_oss")
    ref = find(built, 1, "mlp_down", expert=3)
    stored = next(entry for entry in built.opened.tensors if entry.name == ref.tensor)
    assert ref.entry.size == stored.size // 5
    assert ref.entry.start == stored.start + 3 * ref.entry.size


def test_cross_attention_and_shared_experts_are_told_apart(tiny: Tiny) -> None:
    modules = {
        name: Counter(ref.module for ref in tiny(name).inventory.matrices if ref.layer == 1)
        for name in ("t5", "whisper", "moonshine", "gpt2_cross", "qwen3_next", "granitemoeshared", "llama4_text")
    }
    assert {name: modules[name]["cross_attention"] for name in ("t5", "whisper", "moonshine", "gpt2_cross")} == (
        dict.fromkeys(("t5", "whisper", "moonshine", "gpt2_cross"), 4)
    )
    assert modules["qwen3_next"]["shared_expert"] == 4  # with its own gate
    assert modules["granitemoeshared"]["shared_expert"] == modules["llama4_text"]["shared_expert"] == 3


def test_within_one_tensor_role_head_and_expert_tell_matrices_apart(tiny: Tiny) -> None:
    for name in CASES:
        refs = tiny(name).inventory.matrices
        assert len({(ref.tensor, ref.role, ref.head, ref.expert) for ref in refs}) == len(refs)


def rows(weight: torch.Tensor) -> Iterator[bytes]:
    return (row.tobytes() for row in weight.contiguous().numpy())


def read(built: Built, ref: MatrixRef) -> torch.Tensor:
    return read_matrix(built.opened.source, ref)


def find(built: Built, layer: int, role: str, **place: object) -> MatrixRef:
    place = {"module": None, "expert": None} | place
    (found,) = [
        ref
        for ref in built.inventory.matrices
        if (ref.layer, ref.role) == (layer, role) and all(getattr(ref, key) == value for key, value in place.items())
    ]
    return found


def projected(
    built: Built, hidden: torch.Tensor, layer: int, role: str, module: str | None = None, stack: str | None = None
) -> torch.Tensor:
    return hidden @ read(built, find(built, layer, role, module=module, stack=stack)).T


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)


def run(model: Any) -> None:
    with torch.no_grad():
        model(input_ids=TOKENS)


@contextmanager
def attention_inputs(model: Any) -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """Collect (hidden states, query, key, value) of each block, as they reach the attention function."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    hidden: list[torch.Tensor] = []
    calls: list[tuple[torch.Tensor, ...]] = []

    def spy(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any) -> Any:
        calls.append((hidden[-1], query, key, value))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    def remember(module: Any, args: Any, kwargs: Any) -> None:
        hidden.append((args[0] if args else kwargs["hidden_states"])[:, 0])

    AttentionInterface.register("spy", spy)
    before = model.config._attn_implementation
    model.set_attn_implementation("spy")
    kinds = ("Attention", "SelfAttention")
    hooks = [
        module.register_forward_pre_hook(remember, with_kwargs=True)
        for module in model.modules()
        if type(module).__name__.endswith(kinds)
    ]
    try:
        yield calls
    finally:
        model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


@contextmanager
def inputs_of(model: Any, *names: str, leaf: bool = True) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in names and (not leaf or isinstance(module, torch.nn.Linear))
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@contextmanager
def outputs_of(model: Any, *names: str) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in names
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@contextmanager
def products() -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collect what is multiplied with torch.matmul, where both are (batch, heads, ., .)."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.matmul and args[0].ndim == args[1].ndim == 4:
                calls.append((args[0].detach(), args[1].detach()))
            return function(*args, **(kwargs or {}))

    with Watch():
        yield calls
