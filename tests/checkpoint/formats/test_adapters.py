"""PEFT adapters: the scale, the factors, and what is refused; files written as PEFT writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scanner import analyze
from scanner.checkpoint import list_matrices, open_checkpoint, read_matrix
from scanner.errors import CheckpointError
from scanner.rmt.decomposition import LowRank

QUERY = "base_model.model.model.layers.3.self_attn.q_proj"
DOWN = "base_model.model.model.layers.3.mlp.down_proj"


def _adapter(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(1)
    if tensors is None:
        tensors = {}
        for module, (rows, cols) in {QUERY: (24, 16), DOWN: (16, 40)}.items():
            tensors[f"{module}.lora_A.weight"] = torch.randn(4, cols, generator=random)
            tensors[f"{module}.lora_B.weight"] = torch.randn(rows, 4, generator=random)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base-model"} | config
    settings = {key: value for key, value in settings.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def _product(folder: Path, module: str) -> np.ndarray:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    return tensors[f"{module}.lora_B.weight"].astype(np.float64) @ tensors[f"{module}.lora_A.weight"].astype(np.float64)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"lora_alpha": 6}, 1.5),
        ({"alpha_pattern": {"q_proj": 16}}, 4.0),
        ({"alpha_pattern": {r"layers\.3\.self_attn.q_proj": 2, "q_proj": 16}}, 0.5),
        ({"alpha_pattern": {r"model\.layers\.[0-5]\..*": 16}}, 4.0),
        ({"alpha_pattern": {r"layers\.\d+\.self_attn\.(q|k)_proj": 16}}, 4.0),
        ({"alpha_pattern": {r"^model\.layers\.3\.self_attn\.q_proj": 16}}, 4.0),
        ({"alpha_pattern": {r"^layers\.3\.self_attn\.q_proj": 16}}, 2.0),
        ({"alpha_pattern": {"proj": 16, "self_attn": 99, "q_.{4}$": 6}}, 1.5),
        ({"alpha_pattern": {"model.layers.3.self_attn.q_proj": 16}}, 4.0),
        ({"alpha_pattern": {"base_model.model.model.layers.3.self_attn.q_proj": 16}}, 2.0),
        ({"alpha_pattern": {"(a+)+$": 99}}, 2.0),
        ({"alpha_pattern": {}, "rank_pattern": {".*": 4}}, 2.0),
        ({"lora_alpha": ...}, 2.0),
    ],
)
def test_what_an_adapter_adds_is_scale_b_a(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    folder = _adapter(tmp_path / "adapter", **config)
    opened = open_checkpoint(str(folder))
    assert (opened.format, opened.base_model) == ("peft", "org/base-model")
    inventory = list_matrices(opened)
    query = next(ref for ref in inventory.matrices if ref.role == "query")
    assert (query.layer, query.rows, query.cols, query.tensor) == (3, 24, 16, f"{QUERY}.weight")
    found = read_matrix(opened.source, query)
    assert isinstance(found, LowRank)
    expected = scale * _product(folder, QUERY)
    assert (found.left @ found.right).numpy() == pytest.approx(expected)
    assert analyze(found).singular_values == pytest.approx(np.linalg.svd(expected, compute_uv=False)[:4])
    assert {ref.role for ref in inventory.matrices} == {"query", "mlp_down"}
    assert {skip.tensor for skip in inventory.skipped} == {f"{QUERY}.lora_A.weight", f"{DOWN}.lora_A.weight"}


@pytest.mark.parametrize(
    ("config", "extra", "message"),
    [
        ({"use_dora": True}, {}, "DoRA"),
        ({}, {f"{QUERY}.lora_magnitude_vector.weight": torch.ones(24)}, "DoRA"),
        ({"peft_type": "IA3"}, {}, "type 'IA3'"),
        ({"peft_type": None}, {}, "only LORA"),
        ({"lora_alpha": "much"}, {}, "must be a number"),
        ({"lora_alpha": 10**400}, {}, "must be a number"),
        ({"alpha_pattern": {"q_proj": None}}, {}, "must be a number"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, {}, "target_parameters"),
        ({"use_qalora": True}, {}, "QA-LoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, {}, "initialized by pissa_niter_16"),
        ({"init_lora_weights": "olora"}, {}, "not what was learned"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, config: dict[str, Any], extra: Any, message: str) -> None:
    factors = {f"{QUERY}.lora_A.weight": torch.ones(4, 16), f"{QUERY}.lora_B.weight": torch.ones(24, 4)}
    folder = _adapter(tmp_path / "adapter", factors | extra, **config)
    with pytest.raises(CheckpointError, match=message):
        list_matrices(open_checkpoint(str(folder)))


def test_factors_that_do_not_fit_are_skipped_and_say_why(tmp_path: Path) -> None:
    tensors = {
        "a.q_proj.lora_A.weight": torch.ones(4, 16),
        "a.q_proj.lora_B.weight": torch.ones(24, 3),
        "a.k_proj.lora_A.weight": torch.ones(4, 16),
        "a.conv.lora_A.weight": torch.ones(4, 3, 3, 3),
        "a.conv.lora_B.weight": torch.ones(8, 4, 1, 1),
        "a.score.weight": torch.randn(2, 16),
    }
    inventory = list_matrices(open_checkpoint(str(_adapter(tmp_path / "adapter", tensors))))
    assert [ref.tensor for ref in inventory.matrices] == ["a.score.weight"]
    reasons = {skip.tensor: skip.reason for skip in inventory.skipped}
    assert set(reasons) == set(tensors) - {"a.score.weight"}
    assert reasons["a.k_proj.lora_A.weight"] == "a LoRA factor without its partner"
    assert "cannot be multiplied" in reasons["a.q_proj.lora_B.weight"]
    assert "not matrices" in reasons["a.conv.lora_A.weight"]
