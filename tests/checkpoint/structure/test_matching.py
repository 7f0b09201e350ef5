"""Which matrix is which of another checkpoint, and that none gets lost on the way."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from scanner.checkpoint import MatrixRef
from scanner.checkpoint.model import TensorEntry
from scanner.checkpoint.structure.matching import Matching, match_matrices


def ref(
    tensor: str, layer: int | None = 0, role: str = "query", *, rows: int = 4, head: int | None = None
) -> MatrixRef:
    entry = TensorEntry(name=tensor, dtype="F32", shape=(rows, 4), file="f", start=0, size=16 * rows)
    return MatrixRef(
        tensor=tensor,
        stack=None,
        layer=layer,
        role=role,
        role_source="none",
        head=head,
        expert=None,
        rows=rows,
        cols=4,
        dtype="F32",
        entry=entry,
        transposed=False,
    )


def names(matching: Matching) -> list[tuple[str, str]]:
    return sorted((base.tensor, tuned.tensor) for base, tuned in matching.pairs)


def test_two_towers_that_are_called_alike_inside_keep_to_themselves() -> None:
    towers = [ref(f"tower_{side}.layers.0.q_proj.weight") for side in "ab"]
    for tuned in (towers, towers[::-1]):
        matching = match_matrices(towers, tuned)
        assert names(matching) == [(tower.tensor, tower.tensor) for tower in towers]
        assert matching.only_base == matching.only_tuned == ()


def test_what_could_be_either_of_two_is_neither_and_is_listed() -> None:
    base = [ref(f"tower_{side}.layers.0.q_proj.weight") for side in "ab"]
    tuned = [ref(f"{side}.layers.0.q_proj.weight") for side in ("tower_a", "left", "right")]
    matching = match_matrices(base, tuned)
    # tower_a is itself; tower_b may have become left or right.
    assert names(matching) == [(base[0].tensor, tuned[0].tensor)]
    assert matching.only_base == (base[1],)
    assert matching.only_tuned == (tuned[1], tuned[2])


def test_the_name_inside_the_block_decides_where_prefixes_differ() -> None:
    base = [ref(f"layers.0.{name}.weight", role="other") for name in ("one", "two", "gone")]
    tuned = [ref(f"model.layers.0.{name}.weight", role="other") for name in ("two", "one", "new")]
    matching = match_matrices(base, tuned)
    assert names(matching) == [(f"layers.0.{name}.weight", f"model.layers.0.{name}.weight") for name in ("one", "two")]
    assert (matching.only_base, matching.only_tuned) == ((base[2],), (tuned[2],))


def test_the_only_ones_of_a_place_are_a_pair_whatever_they_are_called() -> None:
    assert names(match_matrices([ref("a.layers.0.q.weight")], [ref("b.layers.0.wq.weight")])) == [
        ("a.layers.0.q.weight", "b.layers.0.wq.weight")
    ]


_REFS = st.builds(
    ref,
    st.builds(
        lambda prefix, layer, tail: f"{prefix}layers.{layer}.{tail}.weight",
        st.sampled_from(["", "model.", "tower_a.", "tower_b.", "model.tower_a."]),
        st.integers(0, 1),
        st.sampled_from(["q_proj", "odd.one", "odd.two"]),
    ),
    st.sampled_from([0, 1]),
    st.sampled_from(["query", "other"]),
    rows=st.sampled_from([4, 5]),
    head=st.sampled_from([None, 0, 1]),
)
_CHECKPOINTS = st.lists(_REFS, max_size=12, unique_by=lambda one: one.key)


def counted(refs: Iterable[MatrixRef]) -> Counter[str]:
    return Counter(one.key for one in refs)


@given(_CHECKPOINTS, _CHECKPOINTS)
def test_every_matrix_of_both_sides_is_in_exactly_one_list(base: list[MatrixRef], tuned: list[MatrixRef]) -> None:
    matching = match_matrices(base, tuned)
    found = [*matching.pairs, *matching.different_shape]
    assert counted([*(old for old, _ in found), *matching.only_base]) == counted(base)
    assert counted([*(new for _, new in found), *matching.only_tuned]) == counted(tuned)
    for old, new in found:
        assert (old.layer, old.role, old.head) == (new.layer, new.role, new.head)
        assert ((old, new) in matching.pairs) == (old.rows == new.rows)


@given(_CHECKPOINTS, st.randoms())
def test_a_checkpoint_is_matched_with_itself_whatever_the_order(refs: list[MatrixRef], random: Random) -> None:
    shuffled = list(refs)
    random.shuffle(shuffled)
    matching = match_matrices(refs, [dataclasses.replace(one) for one in shuffled])
    assert all(old == new for old, new in matching.pairs)
    assert len(matching.pairs) == len(refs)
