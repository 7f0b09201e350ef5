"""Find scanned matrices among the weights of a loaded model: by name if the names agree, otherwise by role and block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scanner.checkpoint import Checkpoint, Inventory, MatrixRef, Selection, TensorEntry, list_matrices, open_checkpoint
from scanner.checkpoint.model import VOCABULARY_ROLES, RowPattern
from scanner.checkpoint.names import printable
from scanner.errors import ScannerError


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A scanned matrix and its location in a loaded model.

    `parameter` is the full name of the parameter. `index` selects a matrix from a stack of experts, `transposed` says that the
    stored matrix is transposed, and `row_pattern` selects rows of the result (None: all rows).
    """

    ref: MatrixRef
    parameter: str
    index: int | None
    transposed: bool
    row_pattern: RowPattern | None

    @property
    def module(self) -> str:
        """Path of the module that owns the parameter."""
        return self.parameter.rpartition(".")[0]

    def view(self, model: torch.nn.Module) -> torch.Tensor:
        """Return the matrix as a view of the memory of the model: (rows, cols), or (groups, width, cols) for a fused weight."""
        weight: torch.Tensor = model.get_parameter(self.parameter).data
        if self.index is not None:
            weight = weight[self.index]
        if self.transposed:
            weight = weight.T
        pattern = self.row_pattern
        if pattern is None:
            return weight
        periods = weight.as_strided(
            (weight.shape[0] // pattern.period, pattern.period, weight.shape[1]),
            (weight.stride(0) * pattern.period, *weight.stride()),
        )
        return periods[:, pattern.offset : pattern.offset + pattern.width]

    def matrix(self, model: torch.nn.Module) -> torch.Tensor:
        """Return the matrix, (rows, cols)."""
        return self.view(model).reshape(self.ref.rows, self.ref.cols)


@dataclass(frozen=True, kw_only=True)
class Target:
    """An open checkpoint and the matrices that an experiment uses."""

    checkpoint: Checkpoint
    inventory: Inventory


def open_target(reference: str, selection: Selection) -> Target:
    """Open a checkpoint and list its matrices, as a scan does.

    Raises:
        ScannerError: the checkpoint cannot be read, embeddings or heads are selected, or a selected role or layer does not exist.
    """
    if selection.heads or selection.vocabulary:
        raise ScannerError(
            "experiments use whole matrices in blocks: omit `heads`, and select no embeddings or output head"
        )
    checkpoint = open_checkpoint(reference)
    inventory = list_matrices(checkpoint, selection)
    everything = list_matrices(checkpoint, Selection()).matrices
    for role in selection.only:
        if not any(ref.role == role for ref in everything):
            there = ", ".join(dict.fromkeys(ref.role for ref in everything))
            raise ScannerError(
                f"{printable(checkpoint.model)} has no matrix with role {role!r}: it has {there or 'none'}"
            )
    for layer in selection.layers:
        if not any(ref.layer == layer for ref in everything):
            layers = [ref.layer for ref in everything if ref.layer is not None]
            raise ScannerError(
                f"{printable(checkpoint.model)} has no layer {layer}: the last one is {max(layers, default=-1)}"
            )
    if not inventory.matrices:
        raise ScannerError(f"{printable(checkpoint.model)} has no matrix with these roles in these layers")
    return Target(checkpoint=checkpoint, inventory=inventory)


def own_matrices(model: Any) -> tuple[MatrixRef, ...]:
    """Return the matrices of a loaded model under its own names, with the roles that a scan would assign."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    entries = tuple(
        TensorEntry(name=name, dtype="F32", shape=tuple(parameter.shape), file="", start=0, size=4 * parameter.numel())
        for name, parameter in parameters.items()
        if parameter.ndim in (2, 3)
    )
    described = Checkpoint(
        model="",
        revision="",
        source=".",  # nothing is read from it: only ties of vocabulary matrices would be
        format="safetensors",
        architecture=type(model).__name__,
        base_model=None,
        parameters=0,
        dtype="F32",
        identity="",
        config=model.config.to_dict(),
        tensors=entries,
    )
    return tuple(ref for ref in list_matrices(described).matrices if ref.role not in VOCABULARY_ROLES)


def place_matrices(model: Any, refs: Sequence[MatrixRef]) -> tuple[list[Placed], dict[str, str]]:
    """Find scanned matrices in a loaded model.

    The first rule that gives exactly one weight applies: the same name; the same name except for a prefix (`bert.`, `model.`) that
    one of the two classes adds; the same stack, layer, role, module and expert (for GGUF files, and checkpoints that transformers
    renames when loading). Shapes must agree.

    Returns:
        The matrices that were found, in the order of `refs`, and the names of the others with the reason.
    """
    own = own_matrices(model)
    placed: list[Placed] = []
    unplaced: dict[str, str] = {}
    by_name = _index(own, lambda ref: (ref.tensor, ref.role, ref.expert))
    by_place = _index(own, _place)
    times = Counter(_place(ref) for ref in refs)
    for ref in refs:
        candidates = by_name.get((ref.tensor, ref.role, ref.expert), [])
        if not candidates:
            candidates = [
                one for one in own if (one.role, one.expert) == (ref.role, ref.expert) and _same_end(one, ref)
            ]
        if len(candidates) != 1 and times[_place(ref)] == 1:
            candidates = by_place.get(_place(ref), [])
        if len(candidates) != 1:
            why = "no weight" if not candidates else f"{len(candidates)} weights"
            unplaced[ref.tensor] = f"the loaded {type(model).__name__} has {why} at its position"
            continue
        found = candidates[0]
        if (found.rows, found.cols) != (ref.rows, ref.cols):
            unplaced[ref.tensor] = f"its shape in the loaded model is {found.rows} x {found.cols}"
            continue
        stacked = model.get_parameter(found.tensor).ndim == 3
        placed.append(
            Placed(
                ref=ref,
                parameter=found.tensor,
                index=found.expert if stacked else None,
                transposed=found.transposed,
                row_pattern=found.row_pattern,
            )
        )
    return placed, unplaced


def _index(refs: Sequence[MatrixRef], key: Callable[[MatrixRef], object]) -> dict[object, list[MatrixRef]]:
    found: dict[object, list[MatrixRef]] = {}
    for ref in refs:
        found.setdefault(key(ref), []).append(ref)
    return found


def _place(ref: MatrixRef) -> object:
    return ref.stack, ref.layer, ref.role, ref.module, ref.expert


def _same_end(one: MatrixRef, other: MatrixRef) -> bool:
    shorter, longer = sorted((one.tensor, other.tensor), key=len)
    return longer.endswith(f".{shorter}")
