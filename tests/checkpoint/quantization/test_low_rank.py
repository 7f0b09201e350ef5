"""Factors of adapters from every program that writes them: the product with the right scale, or a reason; never a factor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scanner.checkpoint import Inventory, list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.differences import difference
from scanner.checkpoint.formats import is_change
from scanner.errors import CheckpointError

from ..formats.gguf_writing import write_gguf
from ..writing import matrix, reasons

Tensors = dict[str, torch.Tensor]
BLOCK = "model.layers.3.self_attn.q_proj"


def _factors(seed: int = 0, rank: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank x 16) and B (24 x rank)."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rank, 16, generator=random), torch.randn(24, rank, generator=random)


def _saved(folder: Path, tensors: Tensors, file: str = "model.safetensors", **more: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {key: json.dumps(value) for key, value in more.pop("metadata", {}).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, metadata or None)
    if more:
        (folder / "adapter_config.json").write_text(json.dumps(more))
    return str(folder)


def _listed(reference: str) -> Inventory:
    """The inventory of a checkpoint in which every tensor is accounted for once, and no factor is a matrix."""
    opened = open_checkpoint(reference)
    inventory = list_matrices(opened)
    listed = [ref.entry.name for ref in inventory.matrices] + [skip.tensor for skip in inventory.skipped]
    assert sorted(listed) == sorted(entry.name for entry in opened.tensors)
    assert all((ref.rows, ref.cols) == (24, 16) for ref in inventory.matrices)
    return inventory


def _read(reference: str, tensor: str) -> Any:
    found = read_matrix(open_checkpoint(reference).source, matrix(_listed(reference), tensor))
    return (found.left @ found.right).numpy() if not isinstance(found, torch.Tensor) else found.double().numpy()


def _numbers(a: torch.Tensor, b: torch.Tensor) -> Any:
    return b.double().numpy() @ a.double().numpy()


def test_mlx_stores_transposed_factors_and_the_scale_itself(tmp_path: Path) -> None:
    a, b = _factors()
    tensors = {f"{BLOCK}.lora_a": a.T, f"{BLOCK}.lora_b": b.T}
    parameters = {"rank": 4, "scale": 10.0}
    folder = _saved(tmp_path, tensors, "adapters.safetensors", lora_parameters=parameters, model="org/base")
    _saved(tmp_path, {name: tensor + 1 for name, tensor in tensors.items()}, "0000100_adapters.safetensors")
    opened = open_checkpoint(folder)
    assert (opened.base_model, is_change(opened)) == ("org/base", True)
    ref = matrix(_listed(folder), f"{BLOCK}.weight")
    assert (ref.role, ref.layer) == ("query", 3)
    assert _read(folder, f"{BLOCK}.weight") == pytest.approx(10 * _numbers(a, b))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fine_tune_type": "dora", "lora_parameters": {"scale": 1.0}}, "type 'dora'"),
        ({"fine_tune_type": "lora", "lora_parameters": {"rank": 4}}, "no scale"),
        ({"lora_parameters": {"scale": "much"}}, "must be a number"),
        ({"lora_parameters": {"scale": float("nan")}}, "must be a number"),
    ],
)
def test_an_mlx_adapter_of_another_kind_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    a, b = _factors()
    tensors = {f"{BLOCK}.lora_a": a.T, f"{BLOCK}.lora_b": b.T}
    with pytest.raises(CheckpointError, match=message):
        _listed(_saved(tmp_path, tensors, "adapters.safetensors", **config))


@pytest.mark.parametrize(("alpha", "scale"), [(2.0, 0.5), (8.0, 2.0), (None, 1.0)])
@pytest.mark.parametrize(
    ("flat", "role", "layer"),
    [
        ("lora_te_text_model_encoder_layers_3_self_attn_q_proj", "query", 3),
        ("lora_te2_text_model_encoder_layers_11_mlp_fc1", "mlp_up", 11),
        ("lora_unet_mid_block_whatever", "other", None),
    ],
)
def test_kohya_stores_alpha_as_a_tensor_and_names_without_dots(
    tmp_path: Path, flat: str, role: str, layer: int | None, alpha: float | None, scale: float
) -> None:
    a, b = _factors()
    tensors = {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b}
    if alpha is not None:
        tensors[f"{flat}.alpha"] = torch.tensor(alpha)
    folder = _saved(tmp_path, tensors)
    ref = matrix(_listed(folder), f"{flat}.weight")
    assert (ref.role, ref.layer) == (role, layer)
    assert _read(folder, f"{flat}.weight") == pytest.approx(scale * _numbers(a, b))


def test_an_alpha_that_is_no_number_fails_when_it_is_read(tmp_path: Path) -> None:
    a, b = _factors()
    tensors = {"lora_unet_x.lora_down.weight": a, "lora_unet_x.lora_up.weight": b}
    folder = _saved(tmp_path, tensors | {"lora_unet_x.alpha": torch.tensor(float("inf"))})
    with pytest.raises(CheckpointError, match="not an alpha"):
        _read(folder, "lora_unet_x.weight")
    shaped = _saved(tmp_path / "shaped", tensors | {"lora_unet_x.alpha": torch.ones(2)})
    assert "an alpha F32 of shape (2,)" in reasons(_listed(shaped))["lora_unet_x.alpha"]


@pytest.mark.parametrize(
    ("names", "scale", "metadata"),
    [
        (("lora_A.weight", "lora_B.weight"), 1.0, {}),
        (("lora.down.weight", "lora.up.weight"), 1.0, {}),
        (("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"), 1.0, {}),
        (("lora_A.weight", "lora_B.weight"), 4.0, {"transformer.lora_alpha": 16, "transformer.r": 4}),
        (("lora_A.weight", "lora_B.weight"), 8.0, {"transformer.lora_alpha": 16, "transformer.use_rslora": True}),
        (
            ("lora_A.weight", "lora_B.weight"),
            0.5,
            {"transformer.lora_alpha": 16, "transformer.alpha_pattern": {"transformer_blocks.0.attn.to_q": 2}},
        ),
    ],
)
def test_diffusers_takes_alpha_for_the_rank_unless_the_file_says_otherwise(
    tmp_path: Path, names: tuple[str, str], scale: float, metadata: dict[str, Any]
) -> None:
    a, b = _factors()
    module = "transformer.transformer_blocks.0.attn.to_q"
    described = {"metadata": {"lora_adapter_metadata": metadata}} if metadata else {}
    tensors = {f"{module}.{names[0]}": a, f"{module}.{names[1]}": b}
    folder = _saved(tmp_path, tensors, "pytorch_lora_weights.safetensors", **described)
    assert matrix(_listed(folder), f"{module}.weight").role == "query"
    assert _read(folder, f"{module}.weight") == pytest.approx(scale * _numbers(a, b))


def test_factors_whose_scale_nothing_tells_are_skipped(tmp_path: Path) -> None:
    (a, b), (c, d) = _factors(), _factors(1, rank=2)
    lone = {f"base_model.model.{BLOCK}.lora_A.weight": a, f"base_model.model.{BLOCK}.lora_B.weight": b}
    ranks = {f"unet.{i}.lora_A.weight": one for i, one in enumerate((a, c))}
    ranks |= {f"unet.{i}.lora_B.weight": one for i, one in enumerate((b, d))}
    falcon = {"transformer.h.0.attn.q.lora_A.weight": a, "transformer.h.0.attn.q.lora_B.weight": b}
    for name, tensors in (("lone", lone), ("ranks", ranks), ("falcon", falcon)):
        inventory = _listed(_saved(tmp_path / name, tensors))
        assert not inventory.matrices
        assert all("scale is unknown" in reason for reason in reasons(inventory).values())


@pytest.mark.parametrize(
    ("metadata", "scale"), [({"adapter.lora.alpha": 16.0}, 4.0), ({"adapter.lora.alpha": 0.0}, 1.0)]
)
def test_a_gguf_adapter_is_scaled_by_its_metadata(tmp_path: Path, metadata: dict[str, Any], scale: float) -> None:
    a, b = _factors()
    names = {"blk.3.attn_q.weight.lora_a": a.numpy(), "blk.3.attn_q.weight.lora_b": b.numpy()}
    said = {"general.type": "adapter", "adapter.type": "lora"} | metadata
    path = str(write_gguf(tmp_path / "adapter.gguf", names, said))
    ref = matrix(_listed(path), "blk.3.attn_q.weight")
    assert (ref.role, ref.layer) == ("query", 3)
    assert _read(path, "blk.3.attn_q.weight") == pytest.approx(scale * _numbers(a, b))
    assert is_change(open_checkpoint(path))


def test_every_adapter_of_a_file_is_kept_apart_and_named(tmp_path: Path) -> None:
    module = f"base_model.model.{BLOCK}"
    names = ("default", "reward", "other-one")
    factors = {name: _factors(seed) for seed, name in enumerate(names)}
    tensors: Tensors = {}
    for name, (a, b) in factors.items():
        tensors |= {f"{module}.lora_A.{name}.weight": a, f"{module}.lora_B.{name}.weight": b}
    for order in (tensors, dict(reversed(tensors.items()))):
        folder = _saved(tmp_path, order, "adapter_model.safetensors", peft_type="LORA", lora_alpha=8)
        inventory = _listed(folder)
        assert {ref.tensor for ref in inventory.matrices} == {f"{module}.{name}.weight" for name in names}
        assert {(ref.role, ref.layer) for ref in inventory.matrices} == {("query", 3)}
        for name, (a, b) in factors.items():
            assert _read(folder, f"{module}.{name}.weight") == pytest.approx(2 * _numbers(a, b))
        said = reasons(inventory)
        assert all(f"adapter '{name}'" in said[f"{module}.lora_A.{name}.weight"] for name in names)


@pytest.mark.parametrize("base", ["base_layer.weight", "weight", "linear.weight", "base_layer.qweight"])
def test_an_adapter_beside_its_base_weight_is_skipped_and_the_base_weight_is_not(tmp_path: Path, base: str) -> None:
    module = f"base_model.model.{BLOCK}"
    tensors: Tensors = {f"{module}.{base}": torch.randn(24, 16)}
    for seed, name in enumerate(("default", "reward")):
        a, b = _factors(seed)
        tensors |= {f"{module}.lora_A.{name}.weight": a, f"{module}.lora_B.{name}.weight": b}
    if base.endswith("qweight"):
        tensors[f"{module}.{base}"] = torch.ones(24, 16, dtype=torch.int32)
    folder = _saved(tmp_path, tensors)
    inventory = _listed(folder)
    said = reasons(inventory)
    expected = [] if "qweight" in base else [f"{module}.{base.removeprefix('base_layer.')}"]
    for name in ("default", "reward"):
        assert f"(adapter '{name}'), not merged" in said[f"{module}.lora_B.{name}.weight"]
    assert [ref.tensor for ref in inventory.matrices] == expected
    assert not is_change(open_checkpoint(folder))


def test_biases_of_factors_are_accounted_for(tmp_path: Path) -> None:
    a, b = _factors()
    tensors = {f"{BLOCK}.lora_A.weight": a, f"{BLOCK}.lora_B.weight": b, f"{BLOCK}.lora_B.bias": torch.ones(24)}
    folder = _saved(tmp_path, tensors, "adapter_model.safetensors", peft_type="LORA", lora_alpha=4)
    inventory = _listed(folder)
    assert reasons(inventory)[f"{BLOCK}.lora_B.bias"].startswith("bias of factor B")
    assert [ref.tensor for ref in inventory.matrices] == [f"{BLOCK}.weight"]


@pytest.mark.parametrize(
    "more",
    [
        {"dora_scale": torch.ones(24, 1)},
        {"lora_mid.weight": torch.ones(4, 4)},
        {"lora_magnitude_vector.default.weight": torch.ones(24)},
    ],
)
def test_a_change_that_is_more_than_a_product_is_skipped(tmp_path: Path, more: Tensors) -> None:
    a, b = _factors()
    flat = "lora_unet_block"
    tensors = {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b}
    inventory = _listed(_saved(tmp_path, tensors | {f"{flat}.{name}": tensor for name, tensor in more.items()}))
    assert not inventory.matrices
    assert "more than the product" in reasons(inventory)[f"{flat}.lora_up.weight"]


@pytest.mark.parametrize("names", ["hada_w1_a hada_w1_b hada_w2_a hada_w2_b", "lokr_w1 lokr_w2", "oft_blocks", "ia3_l"])
def test_parameters_of_other_methods_are_no_matrices(tmp_path: Path, names: str) -> None:
    tensors = {f"lycoris_block.{name}": torch.ones(4, 4) for name in names.split()}
    inventory = _listed(_saved(tmp_path, tensors))
    assert not inventory.matrices
    assert all("parameter of an adapter" in reason for reason in reasons(inventory).values())


SPELLINGS = {
    "a list": (f"{BLOCK}.lora.A", f"{BLOCK}.lora.B"),
    "modules": (f"{BLOCK}.lora.a.weight", f"{BLOCK}.lora.b.weight"),
    "camel case": (f"{BLOCK}.loraA.weight", f"{BLOCK}.loraB.weight"),
    "of the block": ("model.layers.3.self_attn.q_lora.A", "model.layers.3.self_attn.q_lora.B"),
    "a mixture": (f"{BLOCK}.lora_A.loraA.0.mlp.weight", f"{BLOCK}.lora_B.loraB.0.mlp.weight"),
    "Megatron Bridge": ("layers.0.linear_qkv.adapter.linear_in.weight", "layers.0.linear_qkv.adapter.linear_out.weight"),
    "NeMo": ("layers.0.lora_kqv_adapter.linear_in.weight", "layers.0.lora_kqv_adapter.linear_out.weight"),
    "GLoRA": ("lycoris_block.a1.weight", "lycoris_block.a2.weight"),
    "shared": ("vera_A.default", "vera_B.default"),
    "a flat list": ("unet:0:down", "unet:0:up"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPELLINGS)
def test_factors_in_unknown_spellings_are_no_matrices(tmp_path: Path, kind: str) -> None:
    a, b = _factors()
    inventory = _listed(_saved(tmp_path, dict(zip(SPELLINGS[kind], (a, b), strict=True))))
    assert not inventory.matrices
    assert set(reasons(inventory)) == set(SPELLINGS[kind])


def test_low_rank_layers_of_a_model_are_its_weights(tmp_path: Path) -> None:
    rwkv = ("blocks.0.attn.w_lora.lora.0.weight", "blocks.0.attn.w_lora.lora.2.weight")
    names = (*rwkv, "model.layers.0.self_attn.q_a_proj.weight", "blocks.0.flora.weight", "lora_unet_x.diff")
    opened = open_checkpoint(_saved(tmp_path, {name: torch.randn(8, 4) for name in names}))
    assert {ref.tensor for ref in list_matrices(opened).matrices} == set(names)


def test_a_name_of_an_adapter_may_have_dots(tmp_path: Path) -> None:
    a, b = _factors()
    tensors = {
        f"{BLOCK}.lora_{side}.my.v{at}.weight": one for at in (1, 2) for side, one in (("A", a + at), ("B", b + at))
    }
    inventory = _listed(_saved(tmp_path, tensors, "adapter_model.safetensors", peft_type="LORA", r=4))
    assert {ref.tensor for ref in inventory.matrices} == {f"{BLOCK}.my.v1.weight", f"{BLOCK}.my.v2.weight"}
    assert {ref.role for ref in inventory.matrices} == {"query"}


def test_factors_of_another_rank_than_the_config_says_are_skipped(tmp_path: Path) -> None:
    a, b = _factors(rank=8)  # two experts of rank 4, packed as PEFT does for parameters
    tensors = {"layers.0.mlp.experts.lora_A.weight": a, "layers.0.mlp.experts.lora_B.weight": b}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    inventory = _listed(_saved(tmp_path / "a", tensors, "adapter_model.safetensors", **config))
    assert not inventory.matrices
    assert all("rank 8, where adapter_config.json says r = 4" in reason for reason in reasons(inventory).values())
    config["rank_pattern"] = {"experts": 8}
    assert _listed(_saved(tmp_path / "b", tensors, "adapter_model.safetensors", **config)).matrices


def test_an_adapter_in_another_format_is_not_subtracted_from_a_model(tmp_path: Path) -> None:
    a, b = _factors()
    adapter = _saved(tmp_path / "adapter", {"lora_unet_x.lora_down.weight": a, "lora_unet_x.lora_up.weight": b})
    model = _saved(tmp_path / "model", {f"{BLOCK}.weight": torch.randn(24, 16)})
    with pytest.raises(CheckpointError, match="is an adapter"):
        difference(open_checkpoint(model), open_checkpoint(adapter))


def test_half_precision_factors_are_multiplied_in_float64(tmp_path: Path) -> None:
    a, b = (factor.to(torch.bfloat16) for factor in _factors())
    folder = _saved(tmp_path, {"lora_te_x.lora_down.weight": a, "lora_te_x.lora_up.weight": b})
    found = _read(folder, "lora_te_x.weight")
    assert found.dtype == np.float64
    assert found == pytest.approx(_numbers(a, b), rel=1e-14)
