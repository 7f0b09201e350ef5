"""What fine-tuning changed, as a checkpoint of its own: the matrices W_tuned - W_base of `delta:BASE..TUNED`."""

import dataclasses
import hashlib
import re

from scanner.checkpoint.descriptors import Checkpoint, Inventory, MatrixRef, Skipped
from scanner.checkpoint.matching import match_matrices
from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

PREFIX = "delta:"


def split_reference(reference: str) -> tuple[str, str]:
    """`delta:BASE..TUNED` as (BASE, TUNED).

    Raises:
        CheckpointError: not exactly two references with `..` between them.
    """
    text = reference.removeprefix(PREFIX)
    # Not the .. of a path: that one follows a slash or begins the reference.
    places = [found.start() for found in re.finditer(r"(?<=[^/.])\.\.(?=.)", text)]
    if len(places) != 1:
        raise CheckpointError(
            f"'{printable(reference)}' does not name two checkpoints: write {PREFIX}BASE..TUNED, with .. once between them"
        )
    return text[: places[0]], text[places[0] + 2 :]


def difference(base: Checkpoint, tuned: Checkpoint) -> Checkpoint:
    """The virtual checkpoint of the differences; its tensors are those of the tuned model.

    Raises:
        CheckpointError: both references lead to the same content, or one to a model and the other to an adapter.
    """
    for one, other in ((base, tuned), (tuned, base)):
        if one.format == "peft" and other.format != "peft":
            raise CheckpointError(
                f"{one.model} is an adapter, and so a difference already: scan it by itself, without {PREFIX} and "
                f"without {other.model}"
            )
    if (base.identity or base.source) == (tuned.identity or tuned.source):
        raise CheckpointError(f"{base.model} and {tuned.model} are the same checkpoint: every difference would be zero")
    identity = hashlib.sha256(f"delta {base.identity} {tuned.identity}".encode()).hexdigest()
    return dataclasses.replace(
        tuned,
        model=f"{PREFIX}{base.model}..{tuned.model}",
        revision=identity[:12],
        base_model=base.model,
        identity=identity,
        base=base,
    )


def difference_inventory(base: Checkpoint, base_inventory: Inventory, tuned_inventory: Inventory) -> Inventory:
    """Pair the matrices of both sides; what has no partner, or one of another shape, is skipped and says so."""
    matched = match_matrices(base_inventory.matrices, tuned_inventory.matrices)
    pairs = {ref.key: (partner, ref) for partner, ref in matched.pairs}
    differences = tuple(
        _difference(base.source, *pairs[ref.key]) for ref in tuned_inventory.matrices if ref.key in pairs
    )
    skipped = [*tuned_inventory.skipped]
    skipped += [Skipped(tensor=ref.tensor, reason=f"no counterpart in {base.model}") for ref in matched.only_tuned]
    skipped += [
        Skipped(tensor=ref.tensor, reason=f"{ref.rows}x{ref.cols} against {old.rows}x{old.cols} in {base.model}")
        for old, ref in matched.different_shape
    ]
    skipped += [Skipped(tensor=ref.tensor, reason=f"only in {base.model}") for ref in matched.only_base]
    return Inventory(matrices=differences, skipped=tuple(skipped), perhaps_tied=tuned_inventory.perhaps_tied)


def _difference(base_source: str, base: MatrixRef, tuned: MatrixRef) -> MatrixRef:
    return dataclasses.replace(tuned, minus=(base_source, base))
