"""Linear layers as two factors: in a loaded model, in a file, and back.

A folder that `rmtscan compress --factored` wrote has `factors.safetensors` in place of `model.safetensors`: a class of transformers
that was given the folder would start from random weights for the layers it does not find, so it must not find a file at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from scanner.checkpoint.names import printable
from scanner.compress.rules import Factors
from scanner.errors import ScannerError
from scanner.experiments.nlp.models import ModelPlace, load_config, unfilled_model
from scanner.experiments.nlp.placing import Placed

WEIGHTS = "factors.safetensors"
"""File of the weights of a factored checkpoint."""
REPORT = "compression.json"
"""File that says what was compressed and how."""
_LARGEST_REPORT = 64 << 20


class FactoredLinear(torch.nn.Module):
    """A linear layer W x + b with W = L R: `factor_in` computes R x, `factor_out` computes L (R x) + b."""

    def __init__(self, cols: int, rank: int, rows: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = cols, rows
        self.factor_in = torch.nn.Linear(cols, rank, bias=False)
        self.factor_out = torch.nn.Linear(rank, rows, bias=bias)

    @property
    def weight(self) -> torch.Tensor:
        """The product L R, (rows, cols), for models that look at the weight of a layer."""
        return self.factor_out.weight @ self.factor_in.weight

    @property
    def bias(self) -> torch.nn.Parameter | None:
        """The vector b, (rows,)."""
        return self.factor_out.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the layer to states (..., cols)."""
        found: torch.Tensor = self.factor_out(self.factor_in(states))
        return found


def require_own_layers(model: Any, placed: Mapping[str, Placed]) -> None:
    """Check that every matrix is the weight of a linear layer of its own, which can be two layers.

    Raises:
        ScannerError: some are parts of a fused weight or of a stack of experts.
    """
    wrong = [
        one.ref.tensor
        for one in placed.values()
        if one.index is not None or one.row_pattern is not None or not _is_linear(model.get_submodule(one.module))
    ]
    if wrong:
        raise ScannerError(
            f"{len(wrong)} matrices are not layers of their own (fused weights or stacked experts), for example "
            f"{printable(wrong[0])}: omit `factored`, or leave them out with `roles`"
        )


def require_whole(model: str) -> None:
    """Check that a model is not a factored one.

    Raises:
        ScannerError: it is a folder that `rmtscan compress --factored` wrote.
    """
    if all((Path(model) / name).is_file() for name in (WEIGHTS, REPORT)):
        raise ScannerError(
            f"{printable(model)} holds factors of matrices, written by `rmtscan compress --factored`: compress the model that it "
            f"was made from, which {REPORT} names"
        )


def _is_linear(module: torch.nn.Module) -> bool:
    """Whether a layer computes W x + b: `Linear`, and the `Conv1D` of GPT-2, which stores the transpose."""
    return type(module) is torch.nn.Linear or type(module).__name__ == "Conv1D"


def factor_layer(model: Any, placed: Placed, factors: Factors) -> None:
    """Replace the layer of a matrix by its factors; layers that share the weight keep sharing."""
    old = model.get_submodule(placed.module)
    bias = getattr(old, "bias", None)
    new = FactoredLinear(factors.right.shape[1], factors.rank, factors.left.shape[0], bias=bias is not None)
    new.requires_grad_(False)
    new.factor_in.weight.copy_(factors.right)
    new.factor_out.weight.copy_(factors.left)
    if bias is not None:
        new.factor_out.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
    weight = model.get_parameter(placed.parameter)
    for name, module in [*model.named_modules(remove_duplicate=False)]:
        if module is old or (_is_linear(module) and getattr(module, "weight", None) is weight):
            model.set_submodule(name, new)


def load(folder: str | os.PathLike[str], *, device: str = "cpu") -> Any:
    """As `scanner.compress.load`."""
    path = Path(folder)
    shown = printable(str(path))
    if not (path / WEIGHTS).is_file():
        raise ScannerError(
            f"{shown} has no {WEIGHTS}: it is not a folder that rmtscan compress --factored wrote; transformers loads others"
        )
    told = _report(path)
    place = ModelPlace(model=str(told.get("model") or path.name), path=str(path))
    config = load_config(place)
    try:
        tensors = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ScannerError(f"{shown}/{WEIGHTS} cannot be read: {printable(str(error))}") from error
    model = unfilled_model(place, config, dtype=_common_type(tensors))
    for name in sorted(
        name.removesuffix(".factor_in.weight") for name in tensors if name.endswith(".factor_in.weight")
    ):
        _replace(model, name, tensors, shown)
    _fill(model, tensors, shown)
    model.requires_grad_(False)
    return model.to(device).eval()


def _report(path: Path) -> dict[str, Any]:
    file = path / REPORT
    try:
        if file.stat().st_size > _LARGEST_REPORT:
            raise ValueError("it is too large")
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ScannerError(f"{printable(str(file))} cannot be read: {printable(str(error))}") from error
    if not isinstance(found, dict):
        raise ScannerError(f"{printable(str(file))} is not a JSON object")
    return found


def _common_type(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The type that most entries have."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def _replace(model: Any, name: str, tensors: Mapping[str, torch.Tensor], shown: str) -> None:
    """Put a factored layer in the place of a layer, if its factors fit.

    Raises:
        ScannerError: there is no such layer, a factor is missing, or the shapes do not fit.
    """
    first, second = tensors[f"{name}.factor_in.weight"], tensors.get(f"{name}.factor_out.weight")
    try:
        old = model.get_submodule(name)
    except AttributeError:
        old = None
    weight = getattr(old, "weight", None)
    if old is None or weight is None or not _is_linear(old):
        raise ScannerError(f"{shown}: {type(model).__name__} has no linear layer {printable(name)}")
    rows, cols = weight.shape if isinstance(old, torch.nn.Linear) else tuple(weight.shape)[::-1]
    fits = second is not None and first.ndim == second.ndim == 2
    if not fits or second is None or (second.shape[0], second.shape[1], first.shape[1]) != (rows, first.shape[0], cols):
        raise ScannerError(f"{shown}: the factors of {printable(name)} do not make a matrix of {rows} x {cols}")
    new = FactoredLinear(cols, first.shape[0], rows, bias=getattr(old, "bias", None) is not None)
    model.set_submodule(name, new.to(weight.dtype))


def _fill(model: Any, tensors: Mapping[str, torch.Tensor], shown: str) -> None:
    """Copy the tensors of a file into a model; every weight must be there, by itself or tied with one that is.

    Raises:
        ScannerError: a weight is missing, does not fit, or has no place.
    """
    try:
        found = model.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ScannerError(f"{shown}/{WEIGHTS} does not fit {type(model).__name__}: {printable(lines[-1])}") from error
    model.tie_weights()
    state = model.state_dict()
    filled = {state[name].data_ptr() for name in tensors if name in state}
    missing = [name for name in found.missing_keys if state[name].data_ptr() not in filled]
    if missing or found.unexpected_keys:
        name, why = (missing[0], "is missing") if missing else (found.unexpected_keys[0], "has no place in the model")
        raise ScannerError(f"{shown}/{WEIGHTS}: {printable(name)} {why}: the checkpoint is incomplete, write it again")
