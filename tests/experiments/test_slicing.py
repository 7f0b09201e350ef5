"""Removing directions at norms: compared with models whose weights are changed instead, and as a run with stored rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from scanner.cli.main import main
from scanner.engine import PoolOptions
from scanner.errors import ScannerError
from scanner.experiments.nlp.projections import ORDERS, Order, bases, decile_slice, norms_of, sliced
from scanner.experiments.nlp.texts import TextSource
from scanner.experiments.nlp.tokens import Batches, Sequences
from scanner.store import open_store

from .calls import request, slicing
from .tiny import CONFIGS, VOCABULARY, save, text_file

TEXT = Sequences(ids=tuple(np.arange(length, dtype=np.int32) % 80 + 4 for length in (30, 17, 44)))
PAIRS = Sequences(ids=TEXT.ids, types=tuple((np.arange(len(one)) > 9).astype(np.int32) for one in TEXT.ids))


def model_of(kind: str, **more: Any) -> Any:
    """A model with random weights, scales and biases; half of the scales of a norm are negative."""
    config = AutoConfig.for_model(kind, **({"vocab_size": VOCABULARY, "pad_token_id": 0} | more))
    torch.manual_seed(1)
    causal = kind not in ("bert", "deberta", "deberta-v2", "longformer", "t5", "xlnet")
    model = (AutoModelForCausalLM if causal else AutoModel).from_config(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 1.0)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    return model_of("llama", **CONFIGS["llama"])


def directions(model: Any, count: int = 3) -> dict[str, torch.Tensor]:
    """Random orthonormal directions at every norm."""
    generator = torch.Generator().manual_seed(2)
    drawn = {name: torch.randn(len(norm.scale), count, generator=generator) for name, norm in norms_of(model).items()}
    return {name: torch.linalg.qr(one).Q for name, one in drawn.items()}


def output(model: Any) -> torch.Tensor:
    ids = torch.from_numpy(TEXT.ids[0].astype(np.int64))[None]
    found: torch.Tensor = model(input_ids=ids)[0]
    return found


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("llama", 5),
        ("bert", 5),
        ("gpt2", 5),
        ("gemma", 5),
        ("cohere", 3),
        ("olmo", 5),
        ("nemotron", 5),
        ("deberta", 5),
        ("t5", 12),
        ("opt", 5),
    ],
)
def test_norms_taken_apart_are_the_norms_themselves(kind: str, count: int) -> None:
    model = model_of(
        kind, **CONFIGS.get("deberta-v2" if kind == "deberta" else kind, CONFIGS["llama"] | {"head_dim": 4})
    )
    norms = norms_of(model)
    assert len(norms) == count
    for size in (3.0, 0.002):  # for small states the epsilon of the division matters
        states = size * (torch.randn(4, 16) + 0.3)
        for norm in norms.values():
            bias = getattr(norm.module, "bias", None)
            whole = norm.scale * norm.unit(states) + (0.0 if bias is None else bias)
            assert torch.allclose(norm.module(states), whole, rtol=1e-3, atol=1e-4)
            assert torch.allclose(norm.unit(norm.signal(states)), norm.unit(states), atol=1e-5)


def test_scales_are_exact_whatever_the_precision_of_the_model() -> None:
    for kind in ("llama", "bert", "nemotron"):
        model = model_of(kind, **CONFIGS.get(kind, CONFIGS["llama"])).to(torch.bfloat16)
        for norm in norms_of(model).values():
            weight = torch.as_tensor(norm.module.weight).float() + (1.0 if kind == "nemotron" else 0.0)
            assert torch.allclose(norm.scale, weight, rtol=1e-5, atol=1e-6)


def test_norms_of_queries_keys_and_positions_are_none_of_the_states() -> None:
    olmo = norms_of(model_of("olmo2", **CONFIGS["llama"]))  # its norm of the queries has the width of the states
    assert {name.rpartition(".")[2] for name in olmo} == {
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "norm",
    }
    deberta = model_of("deberta-v2", **CONFIGS["deberta-v2"])
    assert deberta.encoder.LayerNorm.weight.shape == (16,)
    assert len(norms_of(deberta)) == 5
    assert "encoder.LayerNorm" not in norms_of(deberta)


class _Repeated(torch.nn.Module):
    """A norm that receives every state twice."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(torch.cat([states, states], dim=1))[:, : states.shape[1]]
        return found


def test_a_norm_without_a_state_for_each_token_stays_intact() -> None:
    model = model_of("llama", **CONFIGS["llama"])
    model.model.norm = _Repeated(model.model.norm)
    found = bases(model, TEXT, Batches(0, 1000), "before")
    assert {*found} == {*norms_of(model)} - {"model.norm.norm"} != set()
    for layer in model.model.layers:
        layer.input_layernorm = _Repeated(layer.input_layernorm)
        layer.post_attention_layernorm = _Repeated(layer.post_attention_layernorm)
    with pytest.raises(ScannerError, match=r"no norm of .* one state per token.*model\.norm\.norm \(3, 88, 16\)"):
        bases(model, TEXT, Batches(0, 1000), "before")


def test_deciles_cover_every_direction_once() -> None:
    for width in (16, 576, 10, 3):
        covered = [index for decile in range(1, 11) for index in range(width)[decile_slice(width, decile)]]
        assert covered == list(range(width))
    with pytest.raises(ValueError, match="`decile` must be 1 to 10"):
        decile_slice(16, 11)


#: As many sequences as tokens in the longest, so that rows and tokens of a batch cannot be distinguished by their number.
SQUARE = Sequences(ids=tuple(np.arange(length, dtype=np.int32) * 7 % 80 + 4 for length in (4, 5, 6, 7, 8, 8, 8, 8)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("llama", TEXT),
        ("bert", PAIRS),
        ("opt", TEXT),
        ("deberta-v2", TEXT),
        ("longformer", TEXT),
        ("xlnet", TEXT),
        ("xlnet", SQUARE),
    ],
)
def test_bases_are_eigenvectors_of_what_numpy_sees_without_padding(kind: str, text: Sequences, order: Order) -> None:
    model = model_of(kind, **CONFIGS[kind])
    found = bases(model, text, Batches(0, 1000), order)  # one padded batch
    seen: dict[str, list[np.ndarray]] = {name: [] for name in found}
    norms = norms_of(model)
    assert {*found} == {*norms}
    for index, ids in enumerate(text.ids):  # one by one: no padding except for that which Longformer appends
        hooks = [
            norms[name].module.register_forward_pre_hook(
                lambda _, given, name=name, ids=ids: seen[name].append(given[0].reshape(-1, 16)[: len(ids)].numpy())
            )
            for name in found
        ]
        given = {"input_ids": ids} | ({"token_type_ids": text.types[index]} if text.types else {})
        model(**{key: torch.from_numpy(values.astype(np.int64))[None] for key, values in given.items()})
        for hook in hooks:
            hook.remove()
    for name, basis in found.items():
        states = np.concatenate(seen[name]).astype(np.float64)
        assert len(states) == text.tokens
        if kind != "llama":
            states = states - states.mean(axis=1, keepdims=True)
        if order == "after":
            states = states / np.sqrt((states**2).mean(axis=1, keepdims=True) + norms[name].eps)
        q = basis.numpy().astype(np.float64)
        rotated = q.T @ (states.T @ states / len(states)) @ q
        values = np.diag(rotated)
        assert q.T @ q == pytest.approx(np.eye(16), abs=1e-5)
        assert rotated - np.diag(values) == pytest.approx(np.zeros((16, 16)), abs=1e-4 * values.max())
        assert np.all(np.diff(values) > -1e-5 * values.max())


def test_after_the_norm_is_the_projection_absorbed_by_the_next_matrices(llama: Any) -> None:
    """SliceGPT: the scale and the projection go into the weights, W diag(g) P diag(1/g)."""
    dropped = directions(llama)
    with sliced(llama, dropped, "after") as count:
        changed = output(llama)
    assert count == 15
    absorbed = model_of("llama", **CONFIGS["llama"])

    def absorb(name: str, *modules: torch.nn.Linear) -> None:
        scale = norms_of(absorbed)[name].scale
        projection = torch.eye(16) - dropped[name] @ dropped[name].T
        for module in modules:
            module.weight.data = module.weight @ torch.diag(scale) @ projection @ torch.diag(1.0 / scale)

    for index, layer in enumerate(absorbed.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        absorb(f"model.layers.{index}.input_layernorm", attention.q_proj, attention.k_proj, attention.v_proj)
        absorb(f"model.layers.{index}.post_attention_layernorm", mlp.gate_proj, mlp.up_proj)
    absorb("model.norm", absorbed.lm_head)
    assert torch.allclose(output(absorbed), changed, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(output(llama), changed, atol=1e-2)


@pytest.mark.parametrize("kind", ["llama", "bert", "opt"])
def test_before_the_norm_is_a_norm_of_projected_states(kind: str) -> None:
    model = model_of(kind, **CONFIGS[kind])
    dropped = directions(model)
    with sliced(model, dropped, "before"):
        changed = output(model)
    other = model_of(kind, **CONFIGS[kind])
    for name in norms_of(other):
        parent, _, own = name.rpartition(".")
        norm = other.get_submodule(name)
        setattr(other.get_submodule(parent), own, _Projected(norm, dropped[name]))
    assert torch.allclose(output(other), changed, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(output(model), changed, atol=1e-2)


@pytest.mark.parametrize(("kind", "one"), [("llama", 0.0), ("gemma", 1.0), ("olmo", None)])
@pytest.mark.parametrize("order", ORDERS)
def test_a_model_can_be_trained_without_directions(kind: str, one: float | None, order: Order) -> None:
    """After a step, the projection has the new scale, and gradients are those of the formula."""
    model = model_of(kind, **CONFIGS["llama"], head_dim=4)
    name, norm = next(iter(norms_of(model).items()))
    dropped = directions(model)[name]
    projection = torch.eye(16) - dropped @ dropped.T
    states = torch.randn(4, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    module: Any = norm.module
    weight: torch.Tensor = torch.ones(16) if one is None else module.weight.requires_grad_()

    def centered(values: torch.Tensor) -> torch.Tensor:
        return values - values.mean(dim=-1, keepdim=True) if norm.centred else values

    def formula() -> torch.Tensor:
        inside = centered(centered(states) @ projection) if order == "before" else centered(states)
        unit = inside / torch.sqrt(inside.square().mean(dim=-1, keepdim=True) + norm.eps)
        return ((one or 0.0) + weight) * (unit if order == "before" else unit @ projection)

    with sliced(model, {name: dropped}, order):
        for _ in range(2):
            wanted, found = formula(), module(states)
            assert torch.allclose(found, wanted, atol=1e-4)
            inputs = [states] if one is None else [states, weight]
            for mine, theirs in zip(*(torch.autograd.grad((y**2).sum(), inputs) for y in (found, wanted)), strict=True):
                assert torch.allclose(mine, theirs, atol=1e-3, rtol=1e-3)
            if one is not None:
                module.weight.data += 0.3


class _Projected(torch.nn.Module):
    def __init__(self, norm: torch.nn.Module, dropped: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.projection = norm, torch.eye(len(dropped)) - dropped @ dropped.T

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if isinstance(self.norm, torch.nn.LayerNorm):
            states = states - states.mean(dim=-1, keepdim=True)
        found: torch.Tensor = self.norm(states @ self.projection)
        return found


@pytest.mark.parametrize("order", ORDERS)
def test_the_model_is_whole_again_afterwards_and_with_nothing_left_out(llama: Any, order: Order) -> None:
    intact = output(llama)
    with sliced(llama, {name: basis[:, :0] for name, basis in directions(llama).items()}, order) as count:
        assert count == 0
        assert torch.allclose(output(llama), intact, atol=1e-5)
    with pytest.raises(KeyError), sliced(llama, directions(llama), order):
        raise KeyError
    assert torch.equal(output(llama), intact)


def test_too_few_tokens_and_no_norms_are_told(llama: Any) -> None:
    with pytest.raises(ScannerError, match="needs at least 16 tokens, got 10"):
        bases(llama, Sequences(ids=(TEXT.ids[0][:10],)), Batches(0, 100), "before")
    bare = torch.nn.Linear(2, 2)
    bare.config = llama.config
    with pytest.raises(ScannerError, match="slicing needs one"):
        norms_of(bare)


@pytest.fixture
def run(tmp_path: Path, local_ray: None) -> Callable[..., Any]:
    """`slicing` of a tiny Llama on its own text."""
    checkpoint, text = save(tmp_path / "llama", "llama"), text_file(tmp_path)
    wanted = request(text=TextSource(reference=str(text)), tokens=150, window=32)
    common: dict[str, Any] = {
        "store": str(tmp_path / "store"),
        "pool": PoolOptions(workers=1),
        "calibration_tokens": 128,
    }
    return lambda **more: slicing(str(checkpoint), wanted, **(common | more))


def test_points_are_stored_and_never_computed_twice(tmp_path: Path, run: Callable[..., Any]) -> None:
    first = run(deciles=(1, 10), orders=("after",))
    assert (first.points, first.kept, first.failed) == (3, 0, {})
    second = run(deciles=(1, 10))
    assert (second.run_id, second.points, second.kept) == (first.run_id, 4, 2)
    store = open_store(second.store)
    rows = store.query("slicing").to_pylist()
    assert [(row["place"], row["decile"], row["removed"]) for row in rows] == [
        ("before norm", 1, 5),
        ("before norm", 10, 10),
        ("after norm", 1, 5),
        ("after norm", 10, 10),
    ]
    assert all(row["delta"] == pytest.approx(row["value"] - row["baseline"]) for row in rows)
    assert all(row["stderr"] > 0.0 and row["metric"] == "perplexity" for row in rows)
    for small, large in ((rows[0], rows[1]), (rows[2], rows[3])):
        assert abs(large["delta"]) > abs(small["delta"])
    kept = store.sql("select kind, method from experiments").to_pylist()
    assert [row["kind"] for row in kept] == ["slicing"]
    assert json.loads(kept[0]["method"])["calibration"]["tokens"] == 128
    third = run(deciles=(1, 10))
    assert third.kept == 4
    forced = run(deciles=(1,), orders=("after",), force=True)
    assert (forced.run_id, forced.kept) == (first.run_id, 0)


def test_what_cannot_be_done_is_told(run: Callable[..., Any]) -> None:
    with pytest.raises(ScannerError, match="`deciles` has 0, which must be at least 1"):
        run(deciles=(0,))
    with pytest.raises(ScannerError, match="`order` must be"):
        run(orders=())


def test_a_calibration_that_is_too_short_is_told_before_anything_runs(tmp_path: Path, in_process: list[Any]) -> None:
    checkpoint, text = save(tmp_path / "llama", "llama"), text_file(tmp_path)
    wanted = request(text=TextSource(reference=str(text)), tokens=150, window=8)
    with pytest.raises(ScannerError, match=r"^a covariance of 16 dimensions needs at least 16 tokens, got 8$"):
        slicing(str(checkpoint), wanted, calibration_tokens=8, store=str(tmp_path / "store"))
    assert in_process == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("deciles", ["x", "3-1", "1-99999"])
def test_deciles_that_are_none_are_told_by_their_option(deciles: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["slicing", "model", "--text", "text.txt", "--deciles", deciles])
    told = capfd.readouterr().err
    assert end.value.code == 2
    assert f"'{deciles}' is " in told
    assert "decile" in told
    assert "--deciles" in told
    assert "layer" not in told


def test_the_calibration_fits_into_the_model(tmp_path: Path, in_process: list[Any]) -> None:
    checkpoint, text = save(tmp_path / "llama", "llama"), text_file(tmp_path)  # it takes 64 tokens
    wanted = request(text=TextSource(reference=str(text)), tokens=150)
    slicing(str(checkpoint), wanted, store=str(tmp_path / "store"), deciles=(1,), orders=("after",))
    assert {len(one) for task in in_process if not task.intact for one in task.calibration.ids} == {64}
