"""Pairs the matrices of two checkpoints by role, layer and name, never by position."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from scanner.checkpoint.model import MatrixRef
from scanner.checkpoint.structure.roles import split_name


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Pairs (base, tuned) of the same place, role and shape, and the matrices without a partner."""

    pairs: tuple[tuple[MatrixRef, MatrixRef], ...]
    different_shape: tuple[tuple[MatrixRef, MatrixRef], ...]
    only_base: tuple[MatrixRef, ...]
    only_tuned: tuple[MatrixRef, ...]


def match_matrices(base: Iterable[MatrixRef], tuned: Iterable[MatrixRef]) -> Matching:
    """Pair matrices by (stack, layer, role, module, head, expert).

    If several matrices share all of these (two poolers; the `other` matrices of a block; two towers), they are paired by
    their whole names, and the remaining ones by the name after the index of the block if it is unique on each side. A
    model that was saved under another prefix (`bert.encoder.layer.0...` and `encoder.layer.0...`) is still the same model.
    Every matrix is in exactly one of the four lists.
    """
    base_by_place, tuned_by_place = _by_place(base), _by_place(tuned)
    pairs: list[tuple[MatrixRef, MatrixRef]] = []
    only_base: list[MatrixRef] = []
    only_tuned: list[MatrixRef] = []
    for place in dict.fromkeys([*base_by_place, *tuned_by_place]):
        here, there = base_by_place.get(place, []), tuned_by_place.get(place, [])
        if len(here) == len(there) == 1:
            pairs.append((here[0], there[0]))
            continue
        for name_of in (_whole_name, _local_name):
            found, here, there = _pair_by(name_of, here, there)
            pairs += found
        only_base += here
        only_tuned += there
    return Matching(
        pairs=tuple(pair for pair in pairs if _same_shape(*pair)),
        different_shape=tuple(pair for pair in pairs if not _same_shape(*pair)),
        only_base=tuple(only_base),
        only_tuned=tuple(only_tuned),
    )


def _by_place(refs: Iterable[MatrixRef]) -> dict[Hashable, list[MatrixRef]]:
    places: dict[Hashable, list[MatrixRef]] = defaultdict(list)
    for ref in refs:
        places[(ref.stack, ref.layer, ref.role, getattr(ref, "module", None), ref.head, ref.expert)].append(ref)
    return places


def _pair_by(
    name_of: Callable[[MatrixRef], str], here: Sequence[MatrixRef], there: Sequence[MatrixRef]
) -> tuple[list[tuple[MatrixRef, MatrixRef]], list[MatrixRef], list[MatrixRef]]:
    """Return the pairs of matrices whose names are unique on both sides, and the rest of each side, in order."""
    base, tuned = _unique(name_of, here), _unique(name_of, there)
    pairs = [(base[name], ref) for name, ref in tuned.items() if name in base]
    paired = base.keys() & tuned.keys()
    left, right = ([ref for ref in side if name_of(ref) not in paired] for side in (here, there))
    return pairs, left, right


def _unique(name_of: Callable[[MatrixRef], str], refs: Iterable[MatrixRef]) -> dict[str, MatrixRef]:
    by_name: dict[str, list[MatrixRef]] = defaultdict(list)
    for ref in refs:
        by_name[name_of(ref)].append(ref)
    return {name: found[0] for name, found in by_name.items() if len(found) == 1}


def _whole_name(ref: MatrixRef) -> str:
    return ref.tensor


def _local_name(ref: MatrixRef) -> str:
    parts = split_name(ref.tensor)
    return parts.before if parts.tail is None else parts.tail


def _same_shape(one: MatrixRef, other: MatrixRef) -> bool:
    return (one.rows, one.cols) == (other.rows, other.cols)
