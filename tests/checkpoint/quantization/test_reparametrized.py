"""Weights that torch computes from other tensors: weight norm as torch computes it, all else a reason."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from scanner.checkpoint import list_matrices, open_checkpoint, read_matrix
from scanner.errors import CheckpointError

from ..writing import checkpoint, matrix, reasons


def _linear(rows: int = 24, cols: int = 16) -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(rows, cols)


def _saved(folder: Path, linear: nn.Module) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    state = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"fc1": linear})])}).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return str(folder)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("new", [False, True])
def test_weight_norm_is_what_torch_computes(tmp_path: Path, dim: int | None, new: bool) -> None:
    norm = parametrizations.weight_norm if new else nn.utils.weight_norm
    linear = norm(_linear(), dim=dim)
    with torch.no_grad():  # norms that differ by a factor of a hundred
        for name, parameter in linear.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.mul_(torch.logspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    linear(torch.zeros(1, 24))
    folder = _saved(tmp_path, linear)
    opened = open_checkpoint(folder)
    inventory = list_matrices(opened)
    ref = matrix(inventory, "layers.0.fc1.weight")
    assert (ref.role, ref.layer, ref.rows, ref.cols) == ("mlp_up", 0, 16, 24)
    assert len(inventory.matrices) == 1
    assert len(inventory.matrices) + len(inventory.skipped) == len(opened.tensors)
    expected = linear.weight.detach().double().numpy()
    assert read_matrix(opened.source, ref).numpy() == pytest.approx(expected, rel=1e-5)


def test_a_row_without_direction_fails(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, {"m.weight_g": torch.ones(4, 1), "m.weight_v": torch.zeros(4, 3)})
    opened = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="length zero"):
        read_matrix(opened.source, matrix(list_matrices(opened), "m.weight"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["spectral old", "spectral new", "orthogonal", "pruned", "low rank"])
def test_other_parametrizations_are_skipped_with_a_reason(tmp_path: Path, kind: str) -> None:
    linear: nn.Module = _linear()
    if kind == "spectral old":
        linear = nn.utils.spectral_norm(linear)
    elif kind == "spectral new":
        linear = parametrizations.spectral_norm(linear)
    elif kind == "orthogonal":
        linear = parametrizations.orthogonal(linear)
    elif kind == "pruned":
        linear = prune.l1_unstructured(linear, "weight", 0.5)
    if kind == "low rank":
        module = "layers.0.fc1.parametrizations.weight"
        names = {"original": (16, 24), "0.lora_A": (4, 24), "0.lora_B": (16, 4)}
        folder = checkpoint(tmp_path, {f"{module}.{name}": torch.randn(shape) for name, shape in names.items()})
    else:
        folder = _saved(tmp_path, linear)
    opened = open_checkpoint(folder)
    inventory = list_matrices(opened)
    assert not inventory.matrices
    assert len(inventory.skipped) == len(opened.tensors)
    said = [reason for name, reason in reasons(inventory).items() if not name.endswith(".bias")]
    assert said
    assert all("layers.0.fc1.weight is computed from" in reason for reason in said)


@pytest.mark.parametrize("module", ["linear", "lstm", "attention"])
def test_a_parametrized_module_may_be_the_whole_model(tmp_path: Path, module: str) -> None:
    kinds = {"linear": (_linear(), "weight"), "lstm": (nn.LSTM(8, 6), "weight_hh_l0")}
    model, name = kinds.get(module) or (nn.MultiheadAttention(8, 2), "in_proj_weight")
    state = parametrizations.weight_norm(model, name).state_dict()
    opened = open_checkpoint(checkpoint(tmp_path, {key: tensor.contiguous() for key, tensor in state.items()}))
    tensors = {ref.tensor for ref in list_matrices(opened).matrices}
    assert name in tensors
    assert not any("original" in tensor for tensor in tensors)


@pytest.mark.parametrize("suffix", ["bar", "orig", "w"])
def test_spectral_norm_of_other_programs_is_skipped(tmp_path: Path, suffix: str) -> None:
    tensors = {f"c.weight_{suffix}": torch.randn(6, 4, 3), "c.weight_u": torch.randn(6), "c.weight_v": torch.randn(12)}
    tensors |= {f"d.weight_{suffix}": torch.randn(6, 4), "d.weight_u": torch.randn(6), "d.weight_v": torch.randn(4)}
    inventory = list_matrices(open_checkpoint(checkpoint(tmp_path, tensors)))
    assert not inventory.matrices
    assert all("is computed from" in reason for reason in reasons(inventory).values())


def test_the_dropped_copy_of_weight_drop_is_skipped(tmp_path: Path) -> None:
    names = ("0.rnns.0.weight_hh_l0_raw", "0.rnns.0.module.weight_hh_l0", "0.rnns.0.module.weight_ih_l0")
    inventory = list_matrices(open_checkpoint(checkpoint(tmp_path, {name: torch.randn(16, 4) for name in names})))
    assert {(ref.tensor, ref.role_source) for ref in inventory.matrices} == {(names[0], "fused"), (names[2], "fused")}
    assert "weight drop" in reasons(inventory)[names[1]]


def test_two_parameters_with_such_names_are_no_weight_norm(tmp_path: Path) -> None:
    tensors = {
        "m.w_g": torch.ones(8, 8),
        "m.w_v": torch.ones(8, 4),
        "m.k_v": torch.ones(3, 3),
        "m.q_orig": torch.ones(2, 2),
    }
    assert {ref.tensor for ref in list_matrices(open_checkpoint(checkpoint(tmp_path, tensors))).matrices} == set(
        tensors
    )


def test_gates_of_recurrent_cells_are_marked_as_fused(tmp_path: Path) -> None:
    state = {f"encoder.{name}": tensor for name, tensor in nn.LSTM(8, 12, 2, bidirectional=True).state_dict().items()}
    state |= {f"layers.1.rnn.{name}": tensor for name, tensor in nn.GRU(8, 12).state_dict().items()}
    state |= {f"cell.{name}": tensor for name, tensor in nn.LSTMCell(8, 12).state_dict().items()}
    inventory = list_matrices(open_checkpoint(checkpoint(tmp_path, state)))
    assert len(inventory.matrices) == 12
    assert {(ref.role, ref.role_source) for ref in inventory.matrices} == {("other", "fused")}
