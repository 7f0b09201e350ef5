"""Weights that a module computes from other tensors: weight norm is combined, every other parametrization is skipped.

    W = g v / |v|,  the norm over all dimensions but the one that g varies along

Source: Salimans, Kingma, arXiv 1602.07868. `torch.nn.utils.weight_norm` stores g and v as `X.weight_g` and `X.weight_v`,
`torch.nn.utils.parametrizations.weight_norm` as `X.parametrizations.weight.original0` and `original1`. Other
parametrizations store `X.parametrizations.weight.original` and what they compute with under `X.parametrizations.weight.0`.
The older spectral norm and pruning store `X.weight_orig` beside `X.weight_u` and `X.weight_v`, or `X.weight_mask`; other
implementations of spectral norm have another name beside `u` and `v`, such as `X.weight_bar`. The weight drop of fastai
stores `X.weight_hh_l0_raw`, and a copy with some entries dropped as `X.module.weight_hh_l0`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.model import LogicalWeight, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.parts import FLOATS
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from scanner.checkpoint.quantization.stored import Stored

CODEC = "weight_norm"

_PARAMETRIZATIONS = ".parametrizations."
_OLD_PARTS = ("_g", "_v", "_orig", "_u", "_mask")
_WHAT_TO_DO = "remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations) and save the model again"


def reparametrized_weights(
    tensors: Sequence[TensorEntry], config: Mapping[str, Any], checkpoint: Sequence[TensorEntry]
) -> tuple[list[LogicalWeight], dict[str, str]]:
    """Return the weights under weight norm, and why the other tensors of parametrizations are skipped, by name.

    A tensor in neither is not part of a parametrization.

    Args:
        tensors: the tensors that may be parts of a parametrization.
        config: of the checkpoint; it says nothing about parametrizations.
        checkpoint: all tensors of the checkpoint, with distinct names.
    """
    by_name = {entry.name: entry for entry in tensors}
    taken = {entry.name for entry in checkpoint}
    weights: list[LogicalWeight] = []
    skipped: dict[str, str] = {}
    for name, parts in _grouped(by_name).items():
        norm, direction = parts.get("g"), parts.get("v")
        if norm is not None and direction is not None and set(parts) == {"g", "v"}:
            axis = _axis(norm, direction)
            if axis is not None and name not in taken:
                weights.append(
                    LogicalWeight(
                        name=name,
                        shape=direction.shape,
                        dtype=direction.dtype,
                        entry=direction,
                        codec=CODEC,
                        companions=(("norm", norm),),
                        settings=(("axis", axis),),
                    )
                )
                skipped[norm.name] = f"norms of {printable(name)}"
                continue
        seen = ", ".join(printable(entry.name.rpartition(".")[2]) for entry in parts.values())
        reason = f"{printable(name)} is computed from {seen}, which are not combined: {_WHAT_TO_DO}"
        skipped |= {entry.name: reason for entry in parts.values()}
    for name, entry in by_name.items():
        module, _, last = name.removesuffix("_raw").rpartition(".")
        dropped = by_name.get(f"{module}.module.{last}".removeprefix("."))
        if name.endswith("_raw") and dropped is not None and dropped.shape == entry.shape:
            skipped[dropped.name] = f"a copy of {printable(name)} with some entries dropped (weight drop)"
    return weights, skipped


def decode_weight_norm(
    weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]
) -> "torch.Tensor":
    """Return g v / |v| as float64, of the shape of v.

    Args:
        weight: v.
        companions: `norm`, g.
        settings: `axis`, the dimension that g varies along, or -1 if it is one number.

    Raises:
        CheckpointError: a row of v is zero, so that it has no direction.
    """
    import torch

    direction, norm = weight.tensor().double(), companions["norm"].tensor().double()
    over = [axis for axis in range(direction.dim()) if axis != settings["axis"]]
    lengths = torch.linalg.vector_norm(direction, dim=over, keepdim=True)
    if not bool((lengths > 0).all()):
        raise CheckpointError(
            f"{printable(weight.entry.name)}: a direction of length zero, so that the weight is undefined"
        )
    scaled: torch.Tensor = direction * (norm.reshape(lengths.shape) / lengths)
    return scaled


def _grouped(by_name: Mapping[str, TensorEntry]) -> dict[str, dict[str, TensorEntry]]:
    """Return the tensors that each parametrized weight is computed from, by what they are."""
    groups: dict[str, dict[str, TensorEntry]] = defaultdict(dict)
    for name, entry in by_name.items():
        # The module may be the whole model, whose parameters have no prefix.
        before, found, after = f".{name}".rpartition(_PARAMETRIZATIONS)
        if found:
            parameter, _, part = after.partition(".")
            kind = {"original0": "g", "original1": "v"}.get(part, part)
            groups[f"{before}.{parameter}"[1:]][kind] = entry
    for name, entry in by_name.items():
        stem = name.removesuffix("_v").removesuffix("_orig")
        together = {suffix: by_name[stem + suffix] for suffix in _OLD_PARTS if stem + suffix in by_name}
        # Each of these suffixes also ends names of ordinary parameters: two of them are needed.
        if name.endswith("_v") and {"_g", "_v"} <= set(together) and _axis(together["_g"], entry) is not None:
            groups[stem] |= {"g": together["_g"], "v": entry}
        elif name.endswith("_orig") and len(together) > 1:
            groups[stem] |= {suffix: part for suffix, part in together.items() if suffix != "_g"}
        elif (spectral := _spectral(name, by_name)) and spectral[0] not in groups:
            groups[spectral[0]] |= spectral[1]
    return groups


def _spectral(name: str, by_name: Mapping[str, TensorEntry]) -> tuple[str, dict[str, TensorEntry]] | None:
    """Return the stem of a name and its parts if `stem_u` and `stem_v` have the lengths of singular vectors of the tensor."""
    stem, _, suffix = name.rpartition("_")
    weight, u, v = by_name[name], by_name.get(f"{stem}_u"), by_name.get(f"{stem}_v")
    if u is None or v is None or len(weight.shape) < 2 or weight.shape[0] == 0:
        return None
    if u.shape != weight.shape[:1] or v.shape != (prod(weight.shape[1:]),):
        return None
    return stem, {suffix: weight, "u": u, "v": v}


def _axis(norm: TensorEntry, direction: TensorEntry) -> int | None:
    """Return the dimension of v that g varies along, -1 if it is one number, or None if these are not g and v."""
    if norm.dtype not in FLOATS or direction.dtype not in FLOATS or len(direction.shape) < 2 or 0 in direction.shape:
        return None
    if not norm.shape:
        return -1
    if len(norm.shape) != len(direction.shape):
        return None
    fitting = [
        axis
        for axis, extent in enumerate(direction.shape)
        if norm.shape == tuple(extent if other == axis else 1 for other in range(len(norm.shape)))
    ]
    return fitting[0] if fitting else None
