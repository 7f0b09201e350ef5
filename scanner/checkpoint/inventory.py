"""The tensors of a checkpoint become matrices to analyze; every tensor that is not analyzed is listed with the reason."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
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
from scanner.checkpoint.names import is_average, is_optimizer_state
from scanner.checkpoint.structure.blocks import Named, distinct_blocks
from scanner.checkpoint.structure.heads import NOT_SPLIT, head_count, head_refs, is_split, misfit
from scanner.checkpoint.structure.layouts import MAX_EXPERTS, Layout, Place, matrices_of
from scanner.checkpoint.structure.products import Projection, is_head_norm, products_of
from scanner.checkpoint.structure.sizes import Sizes
from scanner.checkpoint.structure.ties import find_ties, resolve_ties, tie_check
from scanner.errors import CheckpointError

EVERYTHING = Selection()

_FLAT = re.compile(r"(?:^|[._])flat_param(?:_\d+)?\Z")

_AVERAGE = "a moving average of the weights (EMA): a copy"

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
        selection = selection.without_products()  # a difference of products is not a product of differences
        tuned = replace(checkpoint, base=None, tuned=None)
        return difference_inventory(
            checkpoint.base, _list_by_headers(checkpoint.base, selection), _list_by_headers(tuned, selection)
        )
    form = get_format(checkpoint.format)
    weights, parts = form.weights(checkpoint.tensors, checkpoint.config)
    layout = form.layout(checkpoint.config, checkpoint.architecture, weights)
    stack_of = layout.stacks(weight.name_in_model for weight in weights)
    places = [layout.place_of(weight) for weight in weights]
    averages = {weight.name for weight in weights if is_average(weight.name)}
    if len(averages) == len(weights):
        averages = set()  # then they are the model
    block_of = _blocks(weights, places, stack_of, averages)
    # Checked before the matrices are made: a stack takes a few bytes in a header and becomes thousands of matrices.
    _check_count(
        weight.shape[0]
        for weight, place in zip(weights, places, strict=True)
        if _is_stack(weight, place) and weight.shape[0] <= MAX_EXPERTS
    )
    matrices: list[MatrixRef] = []
    projections: list[Projection] = []
    normed: set[object] = set()
    skipped: list[Skipped] = [*parts, *checkpoint.left_out]
    for weight, place in zip(weights, places, strict=True):
        refs: tuple[MatrixRef, ...] = ()
        reason = _AVERAGE if weight.name in averages else _not_a_matrix(weight, place)
        if reason is None:
            try:
                stack, layer = block_of.get(weight.name, (stack_of.get(weight.name_in_model), place.layer))
                refs = matrices_of(weight, place, layout, stack, layer)
                refs = tuple(_with_heads(ref, layout.sizes(place)) for ref in refs)
            except CheckpointError as error:
                reason = str(error)
            else:
                projections += [Projection(ref=ref, sizes=layout.sizes(place)) for ref in refs if is_split(ref)]
                refs, reason = _selected(refs, place, layout, selection)
                _check_count((len(matrices), len(refs)))
        matrices += refs
        if reason is not None:
            skipped.append(Skipped(tensor=weight.entry.name, reason=reason))
        if place.layer is not None and is_head_norm(weight.name):
            normed.add(block_of.get(weight.name, (stack_of.get(weight.name_in_model), place.layer)))
    if selection.product_roles:
        wanted = [one for one in projections if not selection.layers or one.ref.layer in selection.layers]
        products, reasons = products_of(wanted, selection.product_roles, checkpoint.config, frozenset(normed))
        _check_count((len(matrices), len(products)))
        matrices += products
        used = {factor.entry.name for ref in products for factor in ref.weights}
        skipped = [_reasoned(one, reasons) for one in skipped if one.tensor not in used]
    check = tie_check(checkpoint.source, matrices, checkpoint.config)
    ties = find_ties(check)
    return Inventory(
        matrices=tuple(ref for ref in matrices if ref.entry.name not in ties.copies),
        skipped=(*skipped, *tied(ties.copies)),
        perhaps_tied=tuple(ties.perhaps.items()),
        tie_checks=(check,) if ties.perhaps else (),
    )


def _with_heads(ref: MatrixRef, sizes: Sizes) -> MatrixRef:
    """Return the matrix with its number of heads, if it consists of heads and the config says how many."""
    heads = head_count(ref, sizes)
    return ref if heads is None else replace(ref, heads=heads)


def _reasoned(skipped: Skipped, reasons: Mapping[str, str]) -> Skipped:
    """Return why there is no product of a tensor that is not analyzed by itself."""
    return replace(skipped, reason=reasons.get(skipped.tensor, skipped.reason))


def _blocks(
    weights: Sequence[LogicalWeight], places: Sequence[Place], stack_of: Mapping[str, str], averages: Set[str]
) -> dict[str, tuple[str | None, int | None]]:
    """Return the stack and the layer of the weights in blocks that their names do not tell apart."""
    return distinct_blocks(
        Named(
            name=weight.name,
            before=place.before,
            layer=place.layer,
            tail=place.tail,
            role=place.role,
            module=place.module,
            stack=stack_of.get(weight.name_in_model),
        )
        for weight, place in zip(weights, places, strict=True)
        if place.layer is not None
        and place.tail is not None
        and weight.name not in averages
        and _not_a_matrix(weight, place) is None
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
    if weight.shape == (0,):
        return "no entries: if DeepSpeed ZeRO-3 left it as a placeholder, run zero_to_fp32.py and scan the file that it makes"
    if 0 in weight.shape:
        return f"{' x '.join(map(str, weight.shape))}: no entries"
    if dimensions == 1 and _FLAT.search(weight.name):
        return "weights that FSDP flattened: save the model again with full_state_dict (StateDictType.FULL_STATE_DICT)"
    if dimensions != 2 and not _is_stack(weight, place):
        return f"{dimensions}-D: not a matrix"
    if is_optimizer_state(weight.name):
        return "state of an optimizer: not a weight"
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
