"""Which matrix of one checkpoint is which of another: by what it does and where it stands, never by position."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from scanner.checkpoint.descriptors import MatrixRef
from scanner.checkpoint.roles import split_name


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Pairs (base, tuned) of the same place, shape and role, and everything that has no partner."""

    pairs: tuple[tuple[MatrixRef, MatrixRef], ...]
    different_shape: tuple[tuple[MatrixRef, MatrixRef], ...]
    only_base: tuple[MatrixRef, ...]
    only_tuned: tuple[MatrixRef, ...]


def match_matrices(base: Iterable[MatrixRef], tuned: Iterable[MatrixRef]) -> Matching:
    """Pair matrices by (stack, layer, role, module, head, expert).

    Where several matrices share all of these (two poolers; the `other` ones of a block), the name after the block's
    index, or outside of blocks the whole name, must agree as well. A model that was saved under another prefix
    (`bert.encoder.layer.0...` against `encoder.layer.0...`) is still the same model.
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
        by_name = {_local_name(ref): ref for ref in here}
        for ref in there:
            partner = by_name.pop(_local_name(ref), None)
            if partner is None:
                only_tuned.append(ref)
            else:
                pairs.append((partner, ref))
        only_base += by_name.values()
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


def _local_name(ref: MatrixRef) -> str:
    parts = split_name(ref.tensor)
    return parts.before if parts.tail is None else parts.tail


def _same_shape(one: MatrixRef, other: MatrixRef) -> bool:
    return (one.rows, one.cols) == (other.rows, other.cols)
