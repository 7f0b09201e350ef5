"""The tensors of a checkpoint become matrices to analyze; every tensor that is not analyzed is listed with the reason."""

import re
from collections.abc import Iterable
from dataclasses import replace

from scanner.checkpoint.differences import difference_inventory
from scanner.checkpoint.formats import get_format
from scanner.checkpoint.model import (
    MAX_MATRICES,
    VOCABULARY_ROLES,
    Checkpoint,
    Inventory,
    LogicalWeight,
    MatrixRef,
    Selection,
    Skipped,
    tied,
)
from scanner.checkpoint.structure.heads import NOT_SPLIT, head_refs, is_split, misfit
from scanner.checkpoint.structure.layouts import MAX_EXPERTS, Layout, Place, matrices_of
from scanner.checkpoint.structure.ties import find_ties, resolve_ties, tie_check
from scanner.errors import CheckpointError

EVERYTHING = Selection()

# The biases of stacks of experts are two-dimensional too.
_BIAS = re.compile(r"(?:^|[._])bias\Z")


def list_matrices(
    checkpoint: Checkpoint, selection: Selection = EVERYTHING, *, compare_bytes: bool = True
) -> Inventory:
    """List the matrices of a checkpoint that a selection asks for, and every other tensor with the reason.

    A stored tensor is accounted for once: it holds (or is decoded to) one or more of the matrices, or it is skipped.
    Headers and config alone decide which matrices there are; see `scanner.checkpoint.structure.layouts`.

    Embeddings and output heads are listed only if the selection asks for them, and each weight once: a copy of a tied
    weight is skipped. To find copies, tensors of equal shape are compared byte by byte.

    Args:
        checkpoint: an open checkpoint.
        selection: roles, layers and so on.
        compare_bytes: without it no weight is read. Possible copies then stay among the matrices and are listed in
            `perhaps_tied`; `inventory.without(resolve_ties(inventory.tie_checks))` is the final inventory.

    Raises:
        CheckpointError: there are more matrices than in any model, or a file cannot be read to compare tensors.
    """
    inventory = _list_by_headers(checkpoint, selection)
    if compare_bytes and inventory.tie_checks:
        return inventory.without(resolve_ties(inventory.tie_checks, checkpoint.versions))
    return inventory


def _list_by_headers(checkpoint: Checkpoint, selection: Selection) -> Inventory:
    if checkpoint.base is not None:
        tuned = replace(checkpoint, base=None)
        return difference_inventory(
            checkpoint.base, _list_by_headers(checkpoint.base, selection), _list_by_headers(tuned, selection)
        )
    form = get_format(checkpoint.format)
    weights, parts = form.weights(checkpoint.tensors, checkpoint.config)
    layout = form.layout(checkpoint.config, checkpoint.architecture, weights)
    stack_of = layout.stacks(weight.name for weight in weights)
    places = [layout.place(weight.name) for weight in weights]
    # Checked before the matrices are made: a stack takes a few bytes in a header and becomes thousands of matrices.
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
                refs = matrices_of(weight, place, layout, stack_of.get(weight.name))
            except CheckpointError as error:
                reason = str(error)
            else:
                refs, reason = _selected(refs, place, layout, selection)
                _check_count((len(matrices), len(refs)))
        matrices += refs
        if reason is not None:
            skipped.append(Skipped(tensor=weight.entry.name, reason=reason))
    check = tie_check(checkpoint.source, matrices, checkpoint.config)
    ties = find_ties(check)
    return Inventory(
        matrices=tuple(ref for ref in matrices if ref.entry.name not in ties.copies),
        skipped=(*skipped, *tied(ties.copies)),
        perhaps_tied=tuple(ties.perhaps.items()),
        tie_checks=(check,) if ties.perhaps else (),
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


def _selected(
    refs: tuple[MatrixRef, ...], place: Place, layout: Layout, selection: Selection
) -> tuple[tuple[MatrixRef, ...], str | None]:
    """Return the matrices of a weight that a selection asks for; if there are none, the reason."""
    reasons = [(ref, _not_selected(ref, selection)) for ref in refs]
    kept = tuple(ref for ref, reason in reasons if reason is None)
    if not kept:
        return (), next(reason for _, reason in reasons)
    if not selection.heads:
        return kept, None
    sizes = layout.sizes(place)
    heads = tuple(head for ref in kept for head in head_refs(ref, sizes))
    if heads:
        return heads, None
    return (), misfit(kept[0], sizes) if is_split(kept[0]) else NOT_SPLIT


def _not_selected(ref: MatrixRef, selection: Selection) -> str | None:
    if selection.only and ref.role not in selection.only:
        return "not selected: role"
    if selection.layers and ref.layer not in selection.layers:
        return "not selected: layer"
    if ref.role in VOCABULARY_ROLES and not selection.vocabulary:
        return f"{ref.role}: ask with --embeddings"
    return None
