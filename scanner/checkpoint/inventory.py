"""The tensors of a checkpoint become matrices to analyse, and what is not analysed is listed with its reason."""

import re
from collections.abc import Iterable
from dataclasses import replace

from scanner.checkpoint.differences import difference_inventory
from scanner.checkpoint.formats.adapters import adapter_weights
from scanner.checkpoint.formats.gguf import classify_gguf
from scanner.checkpoint.model import (
    MAX_MATRICES,
    VOCABULARY_ROLES,
    Checkpoint,
    Inventory,
    LogicalWeight,
    MatrixRef,
    Selection,
    Skipped,
)
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.weights import logical_weights
from scanner.checkpoint.sources.files import open_files
from scanner.checkpoint.structure.heads import NOT_SPLIT, head_refs, is_split, misfit
from scanner.checkpoint.structure.layouts import MAX_EXPERTS, Model, Place, matrices_of, model_of, place_of
from scanner.checkpoint.structure.roles import stacks
from scanner.checkpoint.structure.ties import find_ties
from scanner.errors import CheckpointError

EVERYTHING = Selection()

# Of stacks of experts too, whose biases are as long as a matrix is high.
_BIAS = re.compile(r"(?:^|[._])bias\Z")


def list_matrices(
    checkpoint: Checkpoint, selection: Selection = EVERYTHING, *, headers_only: bool = False
) -> Inventory:
    """List the matrices of a checkpoint that a selection wants, and every other tensor with the reason why not.

    A stored tensor is accounted for once: it holds (or is decoded to) one or more of the matrices, or it is skipped.
    Which matrices that are is decided by headers and config alone; see `scanner.checkpoint.structure.layouts`.

    Embeddings and output heads are listed only if the selection asks for them, and then once: a copy of a tied
    weight is skipped. To find copies, tensors of equal shape are compared byte by byte, in blocks; with `headers_only` no
    weight is read, and what may be a copy is listed in `perhaps_tied`.

    Raises:
        CheckpointError: there are more matrices than in any model, or a file cannot be read while tensors are compared.
    """
    if checkpoint.base is not None:
        tuned = replace(checkpoint, base=None)
        return difference_inventory(
            checkpoint.base,
            list_matrices(checkpoint.base, selection, headers_only=headers_only),
            list_matrices(tuned, selection, headers_only=headers_only),
        )
    logical = adapter_weights if checkpoint.format == "peft" else logical_weights
    weights, parts = logical(checkpoint.tensors, checkpoint.config)
    model = model_of(checkpoint.config, checkpoint.architecture, checkpoint.format == "gguf", weights)
    stack_of = _gguf_stacks(weights) if model.is_gguf else stacks(weight.name for weight in weights)
    places = [place_of(weight.name, model) for weight in weights]
    # Before the matrices are made: a stack takes a few bytes in a header and becomes thousands.
    _check_count(
        weight.shape[0]
        for weight, place in zip(weights, places, strict=True)
        if _is_stack(weight, place) and weight.shape[0] <= MAX_EXPERTS
    )
    matrices: list[MatrixRef] = []
    skipped: list[Skipped] = list(parts)
    for weight, place in zip(weights, places, strict=True):
        refs: tuple[MatrixRef, ...] = ()
        reason = _not_a_matrix(weight, place)
        if reason is None:
            try:
                refs = matrices_of(weight, place, model, stack_of.get(weight.name))
            except CheckpointError as error:
                reason = str(error)
            else:
                refs, reason = _wanted(refs, place, model, selection)
                _check_count((len(matrices), len(refs)))
        matrices += refs
        if reason is not None:
            skipped.append(Skipped(tensor=weight.entry.name, reason=reason))
    ties = find_ties(matrices, None if headers_only else open_files(checkpoint.source), checkpoint.config)
    skipped += [
        Skipped(tensor=copy, reason=f"tied with {printable(original)}") for copy, original in ties.copies.items()
    ]
    return Inventory(
        matrices=tuple(ref for ref in matrices if ref.entry.name not in ties.copies),
        skipped=tuple(skipped),
        perhaps_tied=tuple(ties.perhaps.items()),
    )


def _is_stack(weight: LogicalWeight, place: Place) -> bool:
    return len(weight.shape) == 3 and place.stacked


def _check_count(counts: Iterable[int]) -> None:
    if sum(counts) > MAX_MATRICES:
        raise CheckpointError(
            f"by its shapes and its config the checkpoint has more than {MAX_MATRICES} matrices, more than any model"
        )


def _not_a_matrix(weight: LogicalWeight, place: Place) -> str | None:
    dimensions = len(weight.shape)
    if dimensions != 2 and not _is_stack(weight, place):
        return f"{dimensions}-D: not a matrix"
    if 0 in weight.shape:
        return f"{' x '.join(map(str, weight.shape))}: no entries"
    if _BIAS.search(weight.name):
        return "biases: not a matrix"
    return None


def _wanted(
    refs: tuple[MatrixRef, ...], place: Place, model: Model, selection: Selection
) -> tuple[tuple[MatrixRef, ...], str | None]:
    """Return those of a weight's matrices that a selection wants; if there are none, the reason."""
    unwanted = [(ref, _unwanted(ref, selection)) for ref in refs]
    kept = tuple(ref for ref, reason in unwanted if reason is None)
    if not kept:
        return (), next(reason for _, reason in unwanted)
    if not selection.heads:
        return kept, None
    sizes = model.sizes(place)
    heads = tuple(head for ref in kept for head in head_refs(ref, sizes))
    if heads:
        return heads, None
    return (), misfit(kept[0], sizes) if is_split(kept[0]) else NOT_SPLIT


def _unwanted(ref: MatrixRef, selection: Selection) -> str | None:
    if selection.only and ref.role not in selection.only:
        return "not selected: role"
    if selection.layers and ref.layer not in selection.layers:
        return "not selected: layer"
    if ref.role in VOCABULARY_ROLES and not selection.vocabulary:
        return f"{ref.role}: ask with --embeddings"
    return None


def _gguf_stacks(weights: tuple[LogicalWeight, ...]) -> dict[str, str]:
    """Return the stack of each tensor of a GGUF file, or nothing unless there are several; as `roles.stacks`."""
    towers = {"v": "vision", "a": "audio"}
    found = {}
    for weight in weights:
        place = classify_gguf(weight.name)
        tower = towers.get(weight.name.partition(".")[0])
        found[weight.name] = tower or place.stack or ("decoder" if place.layer is not None else None)
    in_blocks = {stack for stack in found.values() if stack is not None}
    return {name: stack for name, stack in found.items() if stack is not None} if len(in_blocks) > 1 else {}
