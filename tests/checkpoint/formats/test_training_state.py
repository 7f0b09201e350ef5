"""Training checkpoints: the model is found under its name, and the rest is left out with a word or refused with one."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scanner.checkpoint import Inventory, list_matrices, open_checkpoint
from scanner.errors import CheckpointError

WEIGHT = torch.arange(12.0).reshape(4, 3)
NAME = "model.layers.0.self_attn.q_proj.weight"
MODEL = {NAME: WEIGHT}
ADAM = {"state": {0: {"exp_avg": WEIGHT, "exp_avg_sq": WEIGHT}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
NETWORK = {"fc.weight": WEIGHT}


def inventory(folder: Path, content: Any) -> Inventory:
    torch.save(content, folder / "checkpoint.pt")
    return list_matrices(open_checkpoint(str(folder / "checkpoint.pt")))


def refused(reference: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(reference))
    assert "\n" not in str(caught.value)
    return str(caught.value)


KINDS: dict[str, tuple[dict[Any, Any], set[str], set[str]]] = {
    "a tensor beside the model": (
        {"model": MODEL, "optimizer": ADAM, "torch_rng_state": torch.zeros(16, dtype=torch.uint8)},
        {NAME},
        {"optimizer", "torch_rng_state"},
    ),
    "an optimizer under another name": ({"model": MODEL, "last_state": ADAM}, {NAME}, {"last_state"}),
    "a moving average": ({"state_dict": MODEL, "state_dict_ema": MODEL}, {NAME}, {"state_dict_ema"}),
    "averages of networks": ({"net_g": NETWORK, "net_g_ema": NETWORK}, {"net_g.fc.weight"}, {"net_g_ema"}),
    "a second network": ({"model": MODEL, "discriminator": NETWORK}, {NAME}, {"discriminator"}),
    "composer": (
        {"state": {"model": MODEL, "optimizers": {"AdamW": ADAM}}, "rng": [{"cuda": torch.zeros(8, dtype=torch.uint8)}]},
        {NAME},
        {"state.optimizers", "rng"},
    ),
    "optimizers of several networks": (
        {"generator": NETWORK, "optim_g": ADAM, "extra": {"inner": copy.deepcopy(ADAM)}},
        {"generator.fc.weight"},
        {"optim_g", "extra.inner"},
    ),
    "an empty model before the state": ({"model": {"dim": 4}, "weights": MODEL}, {NAME}, set()),
    "student and teacher": (
        {"student": NETWORK, "teacher": {"fc.weight": WEIGHT + 1}, "dino_loss": {"center": torch.ones(1, 4)}},
        {"student.fc.weight", "teacher.fc.weight"},
        {"dino_loss"},
    ),
    "an average only": ({"params_ema": NETWORK}, {"params_ema.fc.weight"}, set()),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_model_is_scanned_and_the_rest_is_listed(name: str, tmp_path: Path) -> None:
    content, matrices, skipped = KINDS[name]
    found = inventory(tmp_path, content)
    assert {ref.tensor for ref in found.matrices} == matrices
    assert {skip.tensor for skip in found.skipped} == skipped


OPTIMIZERS: dict[str, Any] = {
    "torch": ADAM,
    "only trainer keys": {"optimizer": ADAM, "epoch": 3},
    "momenta by name": {f"exp_avg.{NAME}": WEIGHT, f"exp_avg_sq.{NAME}": WEIGHT, "step": torch.tensor(3)},
    "a partition": {"optimizer_state_dict": {"zero_stage": 2, "fp32_flat_groups": [torch.zeros(8)]}},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_not_a_model(name: str, tmp_path: Path) -> None:
    torch.save(OPTIMIZERS[name], tmp_path / "checkpoint.pt")
    message = refused(tmp_path / "checkpoint.pt")
    assert "optimizer" in message
    assert "checkpoint.pt" in message


@pytest.mark.parametrize(
    "name",
    [
        "exp_avg.pt",
        "optim.pt",
        "optim_world_size_2_rank_0.pt",
        "optimizer.pt",
        "optimizer.safetensors",
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ],
)
def test_a_file_of_a_trainer_is_not_a_model(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "not a model" in refused(tmp_path / name)
    save_file(MODEL, tmp_path / "weights.safetensors")
    assert [entry.name for entry in open_checkpoint(str(tmp_path)).tensors] == [NAME]


def test_momenta_beside_weights_are_skipped(tmp_path: Path) -> None:
    save_file({NAME: WEIGHT, f"{NAME}.exp_avg": WEIGHT + 1, f"ema.{NAME}": WEIGHT + 2}, tmp_path / "model.safetensors")
    found = list_matrices(open_checkpoint(str(tmp_path)))
    assert [ref.tensor for ref in found.matrices] == [NAME]
    assert {skip.tensor: skip.reason for skip in found.skipped} == {
        f"{NAME}.exp_avg": "state of an optimizer: not a weight",
        f"ema.{NAME}": "a moving average of the weights (EMA): a copy",
    }


def deepspeed(module: dict[str, torch.Tensor], **more: object) -> dict[str, object]:
    return {"module": module, "param_shapes": [OrderedDict()], "ds_version": "0.16.0", "optimizer": None} | more


def test_the_model_of_zero_2_is_read_in_its_folder(tmp_path: Path) -> None:
    torch.save(deepspeed(MODEL, mp_world_size=1), tmp_path / "mp_rank_00_model_states.pt")
    torch.save({}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert [entry.name for entry in open_checkpoint(str(tmp_path)).tensors] == [NAME]


def test_placeholders_of_zero_3_are_refused(tmp_path: Path) -> None:
    empty = deepspeed({NAME: torch.empty(0), "model.norm.weight": torch.ones(4)})
    for rank in range(2):
        torch.save(empty, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    assert "zero_to_fp32.py" in refused(tmp_path / "zero_pp_rank_1_mp_rank_00_model_states.pt")
    assert "zero_to_fp32.py" in refused(tmp_path)


def test_placeholders_in_other_files_are_skipped_with_the_converter(tmp_path: Path) -> None:
    save_file({NAME: torch.empty(0)}, tmp_path / "model.safetensors")
    (skipped,) = list_matrices(open_checkpoint(str(tmp_path))).skipped
    assert "zero_to_fp32.py" in skipped.reason


def test_a_parameter_of_a_universal_checkpoint_is_not_a_model(tmp_path: Path) -> None:
    for name in ("fp32.pt", "exp_avg.pt", "exp_avg_sq.pt"):
        torch.save({"param": WEIGHT}, tmp_path / name)
    assert "zero_to_fp32.py" in refused(tmp_path)


def test_states_of_zero_alone_name_the_converter(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert "zero_to_fp32.py" in refused(tmp_path)


def test_flat_parameters_of_fsdp_say_what_to_do(tmp_path: Path) -> None:
    save_file({"_fsdp_wrapped_module.layers.0._flat_param": torch.ones(12)}, tmp_path / "model.safetensors")
    (skipped,) = list_matrices(open_checkpoint(str(tmp_path))).skipped
    assert "full_state_dict" in skipped.reason


def test_a_part_of_every_weight_is_refused(tmp_path: Path) -> None:
    torch.save(deepspeed(MODEL, mp_world_size=2), tmp_path / "mp_rank_00_model_states.pt")
    assert "one of 2 parts of every weight" in refused(tmp_path / "mp_rank_00_model_states.pt")


def test_a_distributed_checkpoint_names_its_converter(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "pytorch_model_fsdp_0"
    folder.mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "run" / "optimizer_0").mkdir()
    (tmp_path / "run" / "optimizer_0" / "__0_0.distcp").write_bytes(b"x")
    for reference in (folder, folder.parent, tmp_path, folder / "__0_0.distcp"):
        assert "dcp_to_torch_save" in refused(reference)
        assert "optimizer" not in refused(reference)
