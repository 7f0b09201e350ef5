"""The LoRA configuration, read back by PEFT: `LoraConfig.from_pretrained` and `get_peft_model` on the scanned model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from scanner.errors import ConfigError, ScannerError
from scanner.export import Lora, peft
from scanner.export.lora import advise, means_of_parts, rank_of
from scanner.export.writing import write_folder
from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan


def wrapped(found: Lora, model: Path, to: Path) -> tuple[LoraConfig, Any]:
    write_folder(to, found.files())
    config = LoraConfig.from_pretrained(str(to))
    return config, get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)


def layers(model: Any) -> dict[str, Any]:
    """The adapted modules by their names in the base model."""
    found = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {name.removeprefix("base_model.model."): module for name, module in found.items()}


@pytest.mark.filterwarnings("error::UserWarning")
def test_peft_builds_adapters_of_the_measured_ranks(store: Store, folder: Path, tmp_path: Path) -> None:
    found = peft(store, "llama", least=2, most=5, alpha=2.0, init="default")
    config, model = wrapped(found, folder / "llama", tmp_path / "lora")
    rows = store.sql((Path(__file__).parent / "outliers.sql").read_text("utf-8"), {"model": "llama"}).to_pylist()
    expected = {row["tensor"].removesuffix(".weight"): min(max(row["outliers"], 2), 5) for row in rows}
    adapted = layers(model)
    assert {name: module.r["default"] for name, module in adapted.items()} == expected
    assert {module.scaling["default"] for module in adapted.values()} == {2.0}
    assert len({*expected.values()}) > 1, "the test needs ranks that differ"
    assert config.init_lora_weights is True


@pytest.mark.parametrize(("part", "init"), [("largest", "pissa"), ("smallest", "mica"), ("middle", True)])
def test_each_advice_is_an_initialization_that_peft_knows(
    store: Store, folder: Path, tmp_path: Path, part: str, init: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = {"largest": (0.1, 0.1), "smallest": (0.5, 0.1), "middle": (0.1, 0.5)}[part]
    monkeypatch.setattr("scanner.export.lora.means_of_parts", lambda *_: ([p[0]], [p[1]], [0.0]))
    found = peft(store, "llama", most=4)
    assert found.advice["model"]["components"] == part
    config, model = wrapped(found, folder / "llama", tmp_path / "lora")
    assert config.init_lora_weights == init
    layer = layers(model)["model.layers.0.self_attn.q_proj"]
    weight = AutoModelForCausalLM.from_pretrained(folder / "llama").model.layers[0].self_attn.q_proj.weight
    u, _, _ = torch.linalg.svd(weight.detach())
    rank = layer.r["default"]
    own = {"largest": u[:, :rank], "smallest": u[:, -rank:]}.get(part)
    b = layer.lora_B["default"].weight.detach()
    if own is None:
        assert not b.any()
    else:  # its columns are in the span of the advised singular vectors
        torch.testing.assert_close(own @ (own.T @ b), b, atol=1e-4, rtol=1e-4)


def test_parts_of_a_fused_weight_add_up(store: Store, folder: Path, tmp_path: Path) -> None:
    found = peft(store, "gpt2", least=2, most=64)
    names = found.config["target_modules"]
    assert sum("c_attn" in name for name in names) == 2
    config, model = wrapped(found, folder / "gpt2", tmp_path / "lora")
    fused = layers(model)["transformer.h.0.attn.c_attn"]
    assert fused.r["default"] >= 6
    assert len(layers(model)) == len(names) == 8
    assert config.peft_type == "LORA"


def test_ranks_are_limited() -> None:
    assert rank_of(0, 10, 20, least=1, most=64) == 1
    assert rank_of(30, 10, 20, least=1, most=64) == 10
    assert rank_of(30, 100, 200, least=1, most=16) == 16


def test_the_parts_of_the_spectrum_leave_out_vectors_without_a_p_value() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.5, np.nan])
    assert means_of_parts(p, 2) == ([0.4, 0.5], [0.2, 0.3], [0.1, 0.2])
    assert means_of_parts(p, 9) == ([0.1, 0.2, 0.3, 0.4, 0.5],) * 3


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ((0.5, 0.5, 0.0), "smallest"),
        ((0.45, 0.1, 0.0), "smallest"),
        ((0.2, 0.5, 0.0), "middle"),
        ((0.2, 0.3, 0.0), "largest"),
        ((0.2, 0.3, 0.5), "largest"),
    ],
)
def test_the_advice_is_the_random_part_next_to_the_small_end(values: tuple[float, ...], part: str) -> None:
    found = advise(*([value] for value in values))
    assert found.components == part
    assert f"{values[0]:.2f}" in found.reason
    assert advise([], [], []).p_smallest is None


def test_the_files_say_why(store: Store, tmp_path: Path) -> None:
    write_folder(tmp_path / "lora", peft(store, "llama").files())
    told = json.loads((tmp_path / "lora" / "advice.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert len(told["matrices"]) == 28
    assert f"of {28} matrices" in told["model"]["reason"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"roles": ("ov",)}, "'ov', which PEFT does not know"),
        ({"roles": ("router",)}, "'router', which PEFT does not know"),
        ({"least": 4, "most": 2}, "`most` must be at least"),
        ({"alpha": 0.0}, "`alpha` must be a positive number"),
    ],
)
def test_unsuitable_arguments_are_refused(store: Store, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        peft(store, "llama", **more)


def test_experts_and_scans_without_a_scale_null_are_one_line(store: Store, tmp_path: Path) -> None:
    left_out = peft(store, "mixtral").left_out
    assert left_out[0] == "9 left out: PEFT does not know single experts, which transformers stacks into one parameter"
    made = open_store(str(tmp_path / "store"), create=True)
    add_scan(made, "a", [Matrix(tensor="h.0.q_proj.weight")])
    with pytest.raises(ScannerError, match=r"have no scale null, for example h\.0\.q_proj: scan it again with `scale`"):
        peft(made, "org/model")
