"""The difference of two checkpoints as a checkpoint: the matrices W_tuned - W_base of `delta:BASE..TUNED`."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping

from scanner.checkpoint.formats import is_change
from scanner.checkpoint.model import Checkpoint, Inventory, Skipped
from scanner.checkpoint.names import printable
from scanner.checkpoint.structure.matching import match_matrices
from scanner.errors import CheckpointError

PREFIX = "delta:"


def split_reference(reference: str) -> tuple[str, str]:
    """Split `delta:BASE..TUNED` into (BASE, TUNED).

    Raises:
        CheckpointError: there are not exactly two references with `..` between them.
    """
    text = reference.removeprefix(PREFIX)
    # The .. of a path follows a slash or begins the reference.
    places = [found.start() for found in re.finditer(r"(?<=[^/.])\.\.(?=.)", text)]
    if len(places) != 1:
        raise CheckpointError(
            f"'{printable(reference)}' does not name two checkpoints: write {PREFIX}BASE..TUNED, with .. once between them"
        )
    return text[: places[0]], text[places[0] + 2 :]


def difference(base: Checkpoint, tuned: Checkpoint) -> Checkpoint:
    """Return the checkpoint of the differences; its tensors are those of the tuned model.

    Raises:
        CheckpointError: both checkpoints have the same content, one is a model and the other an adapter, or the tuned one
            is a difference itself.
    """
    for one, other in ((base, tuned), (tuned, base)):
        if is_change(one) and not is_change(other):
            raise CheckpointError(
                f"{one.model} is an adapter and therefore a difference already: scan it by itself, without {PREFIX} and "
                f"without {other.model}"
            )
    if tuned.base is not None:
        raise CheckpointError(
            f"{tuned.model} is a difference already, from which nothing can be subtracted: name the models themselves"
        )
    if (base.identity or base.source) == (tuned.identity or tuned.source):
        raise CheckpointError(f"{base.model} and {tuned.model} are the same checkpoint: every difference would be zero")
    unknown = any(side.provisional and not side.identity for side in (base, tuned))  # the content is not hashed yet
    identity = "" if unknown else _identity(base.identity, tuned.identity)
    provisional = ""
    if base.provisional or tuned.provisional:
        provisional = _identity(base.provisional or base.identity, tuned.provisional or tuned.identity)
    return dataclasses.replace(
        tuned,
        model=f"{PREFIX}{base.model}..{tuned.model}",
        revision=identity[:12],
        base_model=base.model,
        identity=identity,
        provisional=provisional,
        base=base,
        tuned=tuned,
        versions=tuple(dict.fromkeys(base.versions + tuned.versions)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DifferenceInventory(Inventory):
    """The inventory of a difference, before it is known which weights of the two sides are copies of tied weights.

    Attributes:
        base: the base checkpoint.
        sides: the inventories of the base and of the tuned checkpoint.
    """

    base: Checkpoint
    sides: tuple[Inventory, Inventory]

    def without(self, copies: Mapping[str, Mapping[str, str]]) -> Inventory:
        """Return the final inventory: both sides without copies, paired again."""
        base, tuned = (side.without(copies) for side in self.sides)
        return difference_inventory(self.base, base, tuned)


def difference_inventory(base: Checkpoint, base_inventory: Inventory, tuned_inventory: Inventory) -> Inventory:
    """Pair the matrices of both sides; a matrix without a partner, or with one of another shape, is skipped."""
    matched = match_matrices(base_inventory.matrices, tuned_inventory.matrices)
    pairs = {ref.identity: (partner, ref) for partner, ref in matched.pairs}
    differences = tuple(
        dataclasses.replace(pairs[ref.identity][1], minus=(base.source, pairs[ref.identity][0]))
        for ref in tuned_inventory.matrices
        if ref.identity in pairs
    )
    skipped = [*tuned_inventory.skipped]
    skipped += [Skipped(tensor=ref.tensor, reason=f"no counterpart in {base.model}") for ref in matched.only_tuned]
    skipped += [
        Skipped(tensor=ref.tensor, reason=f"{ref.rows}x{ref.cols} against {old.rows}x{old.cols} in {base.model}")
        for old, ref in matched.different_shape
    ]
    skipped += [Skipped(tensor=ref.tensor, reason=f"only in {base.model}") for ref in matched.only_base]
    inventory = Inventory(matrices=differences, skipped=tuple(skipped), perhaps_tied=tuned_inventory.perhaps_tied)
    checks = base_inventory.tie_checks + tuned_inventory.tie_checks
    if not checks:
        return inventory
    return DifferenceInventory(
        matrices=inventory.matrices,
        skipped=inventory.skipped,
        perhaps_tied=inventory.perhaps_tied,
        tie_checks=checks,
        base=base,
        sides=(base_inventory, tuned_inventory),
    )


def _identity(base: str | None, tuned: str | None) -> str:
    return hashlib.sha256(f"delta {base} {tuned}".encode()).hexdigest()
