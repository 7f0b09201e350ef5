"""Modules with wrappers, adapters, parametrizations, shared and quantized weights, and input that is no model."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils import parametrizations, parametrize, prune

import scanner
from scanner import CheckpointError, Method, ScannerError, Selection
from scanner.checkpoint import list_matrices
from scanner.checkpoint.memory import opened_model
from scanner.errors import ConfigError

from .models import comparable, tiny

RNG = np.random.default_rng(5)


def array(rows: int = 12, cols: int = 8, kind: Any = np.float32) -> Any:
    return RNG.standard_normal((rows, cols)).astype(kind)


def values_of(result: scanner.ModelAnalysis, tensor: str) -> Any:
    rows = [
        row for row in result.vectors.select(["tensor", "k", "singular_value"]).to_pylist() if row["tensor"] == tensor
    ]
    return np.array([row["singular_value"] for row in sorted(rows, key=lambda row: row["k"])])


def check_values(result: scanner.ModelAnalysis, tensor: str, weight: Any, rtol: float = 1e-9) -> None:
    expected = np.linalg.svd(np.asarray(weight, dtype=np.float64), compute_uv=False)
    np.testing.assert_allclose(values_of(result, tensor), expected, rtol=rtol)


def tensors(result: scanner.ModelAnalysis) -> list[str]:
    return sorted(set(result.matrices["tensor"].to_pylist()))


# ---- weights that a module computes


class Symmetric(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).T


def test_parametrized_weights_are_the_effective_ones() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 6))
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    result = scanner.analyze_model(model)
    assert tensors(result) == ["0.weight", "1.weight"]
    check_values(result, "0.weight", model[0].weight.detach())
    reason = "part of 0.weight, which is parametrized by Symmetric: the effective weight is analyzed"
    assert result.skipped["0.parametrizations.weight.original"] == reason


@pytest.mark.parametrize("old", [False, True])
def test_weight_norm_is_combined(old: bool) -> None:
    linear: Any = torch.nn.Linear(10, 6)
    apply = torch.nn.utils.weight_norm if old else parametrizations.weight_norm
    with torch.no_grad():
        apply(linear)
        (linear.weight_g if old else linear.parametrizations.weight.original0).mul_(
            3.0
        )  # beside what was computed last
    result = scanner.analyze_model(linear)
    direction = linear.weight_v if old else linear.parametrizations.weight.original1
    norm = linear.weight_g if old else linear.parametrizations.weight.original0
    check_values(result, "weight", (direction * (norm / direction.norm(dim=1, keepdim=True))).detach(), rtol=1e-6)


@pytest.mark.parametrize("old", [False, True])
def test_spectral_norm_is_that_of_evaluation_and_its_buffers_stay(old: bool) -> None:
    linear: Any = torch.nn.Linear(10, 6).train()
    (torch.nn.utils.spectral_norm if old else parametrizations.spectral_norm)(linear)
    for _ in range(3):
        linear(torch.randn(2, 10))
    before = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    result = scanner.analyze_model(linear)
    assert linear.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in linear.state_dict().items())
    linear.eval()
    linear(torch.randn(1, 10))
    check_values(result, "weight", linear.weight.detach())
    assert result.matrices.num_rows == 1


def test_pruned_weights_have_their_zeros() -> None:
    linear: Any = torch.nn.Linear(10, 6)
    prune.l1_unstructured(linear, "weight", amount=0.5)
    with torch.no_grad():
        linear.weight_orig.mul_(2.0)  # the attribute `weight` is that of the last forward pass
    result = scanner.analyze_model(linear)
    check_values(result, "weight", (linear.weight_orig * linear.weight_mask).detach())
    assert "pruned" in result.skipped["weight_mask"]


def test_a_parametrization_that_fails_is_a_reason() -> None:
    class Broken(torch.nn.Module):
        works = True

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            if not self.works:
                raise RuntimeError("no such file\nsecond line")
            return weight

    model: Any = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    parametrize.register_parametrization(model[0], "weight", Broken())
    Broken.works = False
    result = scanner.analyze_model(model)
    assert tensors(result) == ["1.weight"]
    reason = result.skipped["0.parametrizations.weight.original"]
    assert (
        reason
        == "part of 0.weight, which is parametrized by Broken and cannot be computed (RuntimeError: no such file)"
    )


def test_a_parametrization_that_changes_from_call_to_call_is_a_reason() -> None:
    class Noisy(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + torch.randn_like(weight)

    model: Any = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    parametrize.register_parametrization(model[0], "weight", Noisy())
    result = scanner.analyze_model(model)
    assert tensors(result) == ["1.weight"]
    assert "other numbers each time" in result.skipped["0.parametrizations.weight.original"]


def test_forward_hooks_do_not_matter() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(6, 6))
    plain = scanner.analyze_model(model)
    model[0].register_forward_hook(lambda *_: pytest.fail("nothing runs"))
    model[0].register_forward_pre_hook(lambda *_: pytest.fail("nothing runs"))
    assert comparable(scanner.analyze_model(model).vectors) == comparable(plain.vectors)


# ---- wrappers and adapters


def test_adapters_of_peft_leave_the_base_weights_under_their_roles() -> None:
    from peft import LoraConfig, get_peft_model

    plain = scanner.analyze_model(tiny("gpt2"), name="gpt2")
    adapted = get_peft_model(tiny("gpt2"), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    result = scanner.analyze_model(adapted, name="gpt2")
    assert comparable(result.vectors) == comparable(plain.vectors)
    factors = {name: reason for name, reason in result.skipped.items() if "lora_" in name}
    assert len(factors) == 2 * 2
    assert all("not merged into it" in reason for reason in factors.values())


def test_merged_adapters_are_part_of_the_weights() -> None:
    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.merge_adapter()
    result = scanner.analyze_model(adapted, roles="query")
    name = "model.layers.0.self_attn.q_proj.weight"
    check_values(result, name, adapted.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.detach())
    assert values_of(result, name)[0] != pytest.approx(values_of(scanner.analyze_model(tiny("llama")), name)[0])
    reasons = {reason for tensor, reason in result.skipped.items() if "lora_" in tensor}
    assert len(reasons) == 2
    assert all("merged into the weight, which is analyzed with it" in reason for reason in reasons)


def test_wrappers_of_training_do_not_change_names() -> None:
    model = tiny("bert")
    plain = comparable(scanner.analyze_model(model).matrices)
    compiled: Any = torch.compile(model)
    for wrapped in (torch.nn.DataParallel(model), compiled, torch.nn.DataParallel(compiled)):
        assert comparable(scanner.analyze_model(wrapped).matrices) == plain
    layers = model.bert.encoder.layer
    layers[0] = torch.compile(layers[0])
    assert comparable(scanner.analyze_model(model).matrices) == plain


def test_conv1d_outside_of_gpt2_is_turned() -> None:
    from transformers.pytorch_utils import Conv1D

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = Conv1D(nf=6, nx=10)  # of shape (10, 6), and 10 inputs
            self.plain = torch.nn.Linear(10, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.plain(x)

    rows = scanner.analyze_model(Block()).matrices.select(["tensor", "rows", "cols"]).to_pylist()
    assert {row["tensor"]: (row["rows"], row["cols"]) for row in rows} == dict.fromkeys(
        ("mixer.weight", "plain.weight"), (6, 10)
    )


def test_a_module_that_is_used_twice_counts_once() -> None:
    shared = torch.nn.Linear(6, 6)
    model = torch.nn.ModuleDict({"first": shared, "second": shared, "third": torch.nn.Linear(6, 6)})
    result = scanner.analyze_model(model)
    assert tensors(result) == ["first.weight", "third.weight"]
    assert result.skipped["second.weight"] == "tied with first.weight"


def test_a_tied_head_is_the_embedding() -> None:
    result = scanner.analyze_model(tiny("gpt2"), embeddings=True)
    assert Counter(result.matrices["role"].to_pylist())["lm_head"] == 0
    assert result.skipped["lm_head.weight"] == "tied with transformer.wte.weight"


# ---- tensors without plain numbers


def test_a_model_on_the_meta_device_is_one_line() -> None:
    with torch.device("meta"):
        model: Any = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    message = r"Sequential: none of its 4 tensors can be read \(4 on the meta device, without numbers: load the weights"
    with pytest.raises(CheckpointError, match=message):
        scanner.analyze_model(model)
    with torch.device("meta"):
        model[0] = torch.nn.Linear(4, 4)
    model[1] = torch.nn.Linear(4, 4)
    result = scanner.analyze_model(model)
    assert tensors(result) == ["1.weight"]
    assert result.skipped["0.weight"].startswith("on the meta device")


def test_a_gpu_that_is_not_there_is_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        ConfigError, match=r"`device` is 'cuda', where torch cannot compute in float64 \(.*\): use 'cpu'"
    ) as raised:
        scanner.analyze_model(torch.nn.Linear(4, 4), device="cuda")
    assert "\n" not in str(raised.value)
    for wrong in ("meta", "gpu"):
        with pytest.raises(ConfigError, match=r"`device` is"):
            scanner.analyze_model(torch.nn.Linear(4, 4), device=wrong)
    # What a model on such a GPU is in this process: its description.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        weight = torch.empty(4, 4, device="cuda")
    with pytest.raises(CheckpointError, match=r"none of its 1 tensors can be read \(1 on the meta device"):
        scanner.analyze_model({"weight": weight})


def test_nan_and_infinite_entries_are_failures() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
        model[1].weight[1, 1] = torch.inf
    result = scanner.analyze_model(model)
    assert tensors(result) == ["2.weight"]
    messages = {row["tensor"]: row["message"] for row in result.failures.to_pylist()}
    assert messages["0.weight"].startswith("1 NaN and 0 infinite of 16 entries")
    assert messages["1.weight"].startswith("0 NaN and 1 infinite of 16 entries")
    assert result.summary()["failed"] == 2


class Coded(torch.Tensor):
    """A tensor of codes and a scale, as torchao and quanto have them."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> Any:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("codes do not compute")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_without_plain_numbers_are_skipped_with_the_reason() -> None:
    quantized = torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8)
    state = {
        "plain": torch.randn(4, 4),
        "sparse": torch.eye(4).to_sparse(),
        "rows": torch.eye(4).to_sparse_csr(),
        "quantized": quantized,
        "coded": Coded(torch.ones(4, 4, dtype=torch.int8), torch.ones(1)),
        "masked": np.ma.masked_array(np.eye(4), mask=np.eye(4)),
        "words": np.array([["a", "b"]]),
        "objects": np.array([[1, None]], dtype=object),
        "extra": {"a": 1}.items(),
        "packed": (quantized, None),
        "step": 7,
        "nothing": None,
        "lazy": torch.nn.LazyLinear(3).weight,
    }
    result = scanner.analyze_model(state)
    assert tensors(result) == ["plain"]
    expected = {
        "sparse": "sparse (sparse_coo): pass its to_dense()",
        "rows": "sparse (sparse_csr): pass its to_dense()",
        "quantized": "quantized by torch (qint8): pass the model from before, or its dequantize()",
        "coded": "a Coded of tests, not plain numbers: dequantize it, or pass the model from before",
        "masked": "an array with a mask: fill it (numpy.ma.filled), or leave the mask out",
        "packed": "quantized by torch (packed parameters): pass the model from before",
        "step": "an int: not an array",
        "nothing": "a NoneType: not an array",
    }
    assert {name: result.skipped[name] for name in expected} == expected
    assert "not numbers" in result.skipped["words"]
    assert "not numbers" in result.skipped["objects"]
    assert result.skipped["lazy"].startswith("not initialized")


def test_modules_quantized_by_bitsandbytes_are_told_apart_as_in_files(tmp_path: Path) -> None:
    """Its 8-bit layers are codes with one scale per row, which are decoded, and its 4-bit ones are refused with the reason."""
    codes = torch.from_numpy(RNG.integers(-127, 128, (6, 8)).astype(np.int8))
    scales = torch.rand(6) + 0.5
    state = {
        "layers.0.q_proj.weight": codes,
        "layers.0.q_proj.SCB": scales,
        "layers.0.k_proj.weight": torch.zeros(24, 1, dtype=torch.uint8),
        "layers.0.k_proj.weight.absmax": torch.ones(1),
        "layers.0.k_proj.weight.quant_map": torch.ones(16),
        "layers.0.k_proj.weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
    }
    result = scanner.analyze_model(state)
    assert tensors(result) == ["layers.0.q_proj.weight"]
    check_values(result, "layers.0.q_proj.weight", codes.double() * scales.double()[:, None] / 127, rtol=1e-6)
    assert "4 bits of bitsandbytes" in result.skipped["layers.0.k_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    from_file = list_matrices(scanner.open_checkpoint(str(tmp_path))).skipped
    assert {one.tensor: one.reason for one in from_file} == result.skipped


# ---- arrays


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2"])
def test_arrays_of_any_precision_and_byte_order(kind: str) -> None:
    weight = array().astype(kind)
    check_values(scanner.analyze_model({"a": weight}), "a", weight)


def test_views_and_other_dtypes_of_arrays_and_tensors() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    base, brain = torch.randn(8, 12), array(6, 9).astype(ml_dtypes.bfloat16)
    state = {
        "turned": base.T,
        "part": base[1:5, ::2],
        "brain": base[:4].to(torch.bfloat16),
        "numpy_brain": brain,
        "needs_grad": torch.nn.Parameter(base[2:]),
        "reversed": array()[::-1, ::-1],
        "half": base.half(),
    }
    result = scanner.analyze_model(state)
    assert tensors(result) == sorted(state)
    for name, weight in state.items():
        plain = weight.detach().double().numpy() if isinstance(weight, torch.Tensor) else weight.astype(np.float64)
        check_values(result, name, plain)
        row = next(row for row in result.matrices.to_pylist() if row["tensor"] == name)
        assert (row["rows"], row["cols"]) == plain.shape


def test_objects_that_numpy_converts_are_arrays() -> None:
    class Lazy:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.eye(4) + 1.0

    assert tensors(scanner.analyze_model({"lazy": Lazy()})) == ["lazy"]


# ---- no model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./model", r"`model` is './model', a place: name checkpoints in `scanner.scan`"),
        (Path("model"), r"`model` is 'model', a place"),
        (np.eye(3), r"`model` is one ndarray: pass a matrix to `scanner.analyze`"),
        (torch.eye(3), r"`model` is one Tensor: pass a matrix"),
        ([np.eye(3)], r"`model` is a list: pass a torch.nn.Module, a state dict, or a mapping from names to arrays"),
        (None, r"`model` is a NoneType"),
        (torch.nn.Linear, r"`model` is the class Linear: pass an instance of it"),
        ({0: np.eye(3)}, r"`model` has the key 0, which is not a name"),
        ({"model": {"a": np.eye(3)}}, r"`model` has a dict under 'model' instead of an array: pass that instead"),
        ({"a": torch.nn.Linear(2, 2)}, r"`model` has a Linear under 'a'"),
    ],
)
def test_what_is_no_model_is_one_line(model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        scanner.analyze_model(model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, r"model: it holds no tensors: there is nothing to analyze"),
        (torch.nn.ReLU(), r"ReLU: it holds no tensors"),
        (torch.nn.LayerNorm(4), r"LayerNorm: no matrix to analyze among its 2 tensors \(2 1-D: not a matrix\)"),
        (torch.nn.Embedding(5, 4), r"Embedding: no matrix to analyze among its 1 tensors"),
        ({"n": 3}, r"model: none of its 1 tensors can be read \(1 an int: not an array\)"),
    ],
)
def test_models_without_matrices_are_one_line(model: Any, message: str) -> None:
    if isinstance(model, torch.nn.Embedding):
        model = torch.nn.ModuleDict({"embed_tokens": model})
        message = message.replace("Embedding", "ModuleDict")
    with pytest.raises(CheckpointError, match=message) as raised:
        scanner.analyze_model(model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "query"}, r"`role` is no option of a scan: did you mean 'roles'\?"),
        ({"roles": "querry"}, r"`only` has 'querry', which must be one of query, "),
        ({"layers": "three"}, r"`layers` .*'three'"),
        ({"sigma": "mean"}, r"`sigma` must be one of median, std"),
        ({"scale": "rows"}, r"`scale` must be one of robust, total, none, got 'rows'"),
        ({"method": Method(), "heads": True}, r"`heads` is given beside `method`"),
        ({"method": "fast"}, r"`method` is a str"),
        ({"ensembles": ("white",)}, r"unknown ensemble 'white'"),
        ({"draws": 0}, r"`draws` must be at least 1"),
        ({"workers": 0}, r"`workers` must be at least 1"),
        ({"workers": "2"}, r"`workers` must be a whole number"),
        ({"draws": "a"}, r"`draws` must be a whole number"),
        ({"ensembles": "permuted"}, r"`ensembles` "),
        ({"name": 3}, r"`name` must be a text"),
        ({"observer": 3}, r"`observer` must be"),
        ({"workers": 1, "device": "cpu:0"}, r"`device` is where this process computes"),
    ],
)
def test_options_that_are_not_accepted(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScannerError, match=message):
        scanner.analyze_model(torch.nn.Linear(3, 3), **options)


def test_options_are_those_of_a_scan() -> None:
    model = tiny("llama")
    method = Method(sigma="std", scale="none", selection=Selection(only=("query", "key"), layers=(0, 1), heads=True))
    one = scanner.analyze_model(model, method=method)
    other = scanner.analyze_model(model, sigma="std", scale="none", roles=["query", "key"], layers=range(2), heads=True)
    assert one.scan_id == other.scan_id
    assert comparable(one.vectors) == comparable(other.vectors)
    assert set(one.matrices["head"].to_pylist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("model", [torch.nn.Linear(3, 3), {"a": np.eye(3)}, torch.nn.Linear(3, 3).state_dict()])
def test_scan_and_analyze_name_analyze_model(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ScannerError, match=r"`scanner.analyze_model`"):
        scanner.scan(model, store=tmp_path / "store")
    with pytest.raises(ValueError, match=r"pass a model or its state dict to `scanner.analyze_model`"):
        scanner.analyze(model)


def test_a_model_in_memory_cannot_be_opened_again() -> None:
    with pytest.raises(CheckpointError, match="was analyzed in memory and cannot be opened again: save the model"):
        scanner.open_checkpoint("in-memory:Linear")


def test_a_state_dict_of_torch_load_and_a_sharded_model() -> None:
    buffer = io.BytesIO()
    model = tiny("bert")
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    expected = comparable(scanner.analyze_model(model, name="bert").matrices)
    for config in (model.config, model.config.to_dict() | {"architectures": ["BertForMaskedLM"]}):
        assert comparable(scanner.analyze_model(loaded, config=config, name="bert").matrices) == expected
    for wrong in ("bert", 3, [model.config]):
        with pytest.raises(ConfigError, match=r"`config` is a (str|int|list): pass what config.json says"):
            scanner.analyze_model(loaded, config=wrong)

    class FullyShardedDataParallel(torch.nn.Module):
        pass

    with pytest.raises(CheckpointError, match="sharded by FSDP: pass a full state dict"):
        scanner.analyze_model(torch.nn.Sequential(FullyShardedDataParallel()))
    sharded = torch.nn.Linear(3, 3)
    sharded.weight = torch.nn.Parameter(torch.empty(0))
    sharded.weight.ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="sharded by ZeRO-3: pass a full state dict"):
        scanner.analyze_model(sharded)


def test_many_modules_are_listed_in_time_that_grows_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is counted, not timed: how often the rules look at a name, for ten times as many modules, half of them parametrized."""
    from scanner.checkpoint.structure import layouts

    looks = Counter[int]()
    place = layouts.Layout.place

    def counted(self: Any, name: str) -> Any:
        looks[count] += 1
        return place(self, name)

    monkeypatch.setattr(layouts.Layout, "place", counted)
    for count in (1000, 10_000):
        model = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(count))
        for module in model[: count // 2]:
            parametrize.register_parametrization(module, "weight", Symmetric())
        with opened_model(model) as opened:
            assert len(list_matrices(opened).matrices) == count
    assert looks[10_000] == 10 * looks[1000]
