"""What fine-tuning changed, as a checkpoint of its own: the matrices W_tuned - W_base of `delta:BASE..TUNED`."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from scanner.checkpoint.model import Checkpoint, Inventory, MatrixRef, Skipped
from scanner.checkpoint.names import printable
from scanner.checkpoint.structure.matching import match_matrices
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


def reference_of(scan: Mapping[str, Any], scans_of: Callable[[str], Iterable[Mapping[str, Any]]]) -> str:
    """What to open to have the checkpoint of a scan again: its source; of a difference, both sides' sources.

    The scan of a difference tells where the tuned checkpoint is, and what the base is called; where that is, its own
    scan says.

    Args:
        scan: the row of table `scans`.
        scans_of: the rows of the scans of a model by its name, the best first.

    Raises:
        CheckpointError: the base of a difference is not scanned.
    """
    model, source, base_model = (str(scan[name] or "") for name in ("model", "source", "base_model"))
    if not model.startswith(PREFIX) or source.startswith(PREFIX):
        return source
    bases = [base for base in scans_of(base_model) if base["source"]]
    tuned = [other["identity"] for other in scans_of(model.removeprefix(f"{PREFIX}{base_model}.."))]
    # Of several revisions or folders of one name, the one that was subtracted.
    same = [base for base in bases if any(_identity(base["identity"], other) == scan["identity"] for other in tuned)]
    if not bases:
        raise CheckpointError(
            f"the store does not say where {printable(base_model)!r} is, which is subtracted in {printable(model)!r}: "
            "scan it too"
        )
    return f"{PREFIX}{reference_of((same or bases)[0], scans_of)}..{source}"


def difference(base: Checkpoint, tuned: Checkpoint) -> Checkpoint:
    """The virtual checkpoint of the differences; its tensors are those of the tuned model.

    Raises:
        CheckpointError: both references lead to the same content, or one to a model and the other to an adapter, or
            the tuned one is a difference itself.
    """
    for one, other in ((base, tuned), (tuned, base)):
        if one.format == "peft" and other.format != "peft":
            raise CheckpointError(
                f"{one.model} is an adapter, and so a difference already: scan it by itself, without {PREFIX} and "
                f"without {other.model}"
            )
    if tuned.base is not None:
        raise CheckpointError(
            f"{tuned.model} is a difference already, and nothing can be subtracted from it: name the models themselves"
        )
    if (base.identity or base.source) == (tuned.identity or tuned.source):
        raise CheckpointError(f"{base.model} and {tuned.model} are the same checkpoint: every difference would be zero")
    identity = _identity(base.identity, tuned.identity)
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


def _identity(base: str | None, tuned: str | None) -> str:
    return hashlib.sha256(f"delta {base} {tuned}".encode()).hexdigest()
