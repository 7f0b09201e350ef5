"""Which block each matrix is in, where the index in its name alone does not say: an index counts one kind of block, once.

Names may count anew in every part of a model: in the stages of Swin (`layers.1.blocks.0`), in the halves of a UNet
(`up_blocks.2.attentions.0`), in two copies of a model (`student.blocks.0`, `teacher.blocks.0`). Matrices of the same role with
the same index would then be taken for one block. Only models in which this happens are numbered again.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scanner.checkpoint.structure.role_tables import BLOCK_WORDS, GGUF_ROLES

# The roles of a block. All others may occur anywhere and say nothing about what is a block.
_BLOCK_ROLES = frozenset(GGUF_ROLES) - {"embedding", "lm_head"}
_MAX_DEPTH = 16

_Group = tuple[str | None, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Named:
    """What the name of a matrix says: see `scanner.checkpoint.structure.layouts.Place`; `stack` as in `MatrixRef`."""

    name: str
    before: str
    layer: int
    tail: str
    role: str
    module: str | None
    stack: str | None


@dataclass(frozen=True, kw_only=True)
class _Path:
    """Where a matrix is: the words and the indices of all counters around it, and the rest of its name."""

    words: tuple[str, ...]
    indices: tuple[int, ...]
    rest: str


def distinct_blocks(matrices: Iterable[Named]) -> dict[str, tuple[str | None, int | None]]:
    """Return (stack, layer) by name, for the matrices in blocks whose names do not tell them apart.

    Parts of a model with different names (`down_blocks`, `up_blocks`; `student`, `teacher`) become stacks of their own. Blocks
    that are counted anew in every stage are numbered through, in the order of their indices. A matrix of a stage that is in
    none of its blocks has no layer.
    """
    known = list(matrices)
    nested = _nested(known)
    groups: dict[_Group, list[tuple[Named, _Path]]] = defaultdict(list)
    found: dict[str, tuple[str | None, int | None]] = {}
    for one in known:
        path = _path(one, nested)
        if path is None:
            found[one.name] = (one.stack, None)
        else:
            groups[(one.stack, path.words)].append((one, path))
    stack_of = _separate(groups)
    for group, members in groups.items():
        stack = stack_of.get(group, group[0])
        number = _numbers(path.indices for _, path in members)
        for one, path in members:
            if (stack, number[path.indices]) != (one.stack, one.layer):
                found[one.name] = (stack, number[path.indices])
    return found


def _nested(known: Sequence[Named]) -> dict[str, set[str]]:
    """Return, by the words before an index, the words before a second index after which the same role occurs again and again.

    In `layers.0.blocks.1.attn.proj` the second index counts blocks; in `block.0.layer.1.EncDecAttention.q` it counts the parts
    of one block, each of which occurs once. If a projection of the outer block is in no inner one, the outer is the block.
    """
    seen: dict[tuple[str, int, str, str], int] = {}
    inner: dict[str, set[str]] = defaultdict(set)
    outside: dict[str, list[str]] = defaultdict(list)
    for one in known:
        if one.role not in _BLOCK_ROLES:
            continue
        outside[_words(one.before)].append(one.tail)
        for head, index, rest in _counters(one.tail):
            if seen.setdefault((one.before, one.layer, head, rest), index) != index:
                inner[_words(one.before)].add(_words(head))
    return {
        before: heads
        for before, heads in inner.items()
        if all(any(_words(head) in heads for head, _, _ in _counters(tail)) for tail in outside[before])
    }


def _path(one: Named, nested: dict[str, set[str]]) -> _Path | None:
    """Return where a matrix is; None if it is between the blocks of a stage."""
    components, rest = [*one.before.split("."), str(one.layer)], one.tail
    heads = nested.get(_words(one.before))
    if heads is not None:
        inside = [counter for counter in _counters(one.tail) if _words(counter[0]) in heads]
        if not inside:
            return None
        head, index, rest = inside[-1]
        components += [*(component for component in head.split(".") if component), str(index)]
    return _Path(
        words=tuple(component for component in components if not _is_index(component)),
        indices=tuple(int(component) for component in components if _is_index(component)),
        rest=rest,
    )


def _counters(tail: str) -> Iterator[tuple[str, int, str]]:
    """Yield the counters in a tail that may count blocks: the name before the index, the index and the name after it."""
    components = tail.split(".")
    for position, component in enumerate(components[: min(_MAX_DEPTH, len(components) - 1)]):
        if _is_index(component) and (position == 0 or components[position - 1] in BLOCK_WORDS):
            yield ".".join(components[:position]), int(component), ".".join(components[position + 1 :])


def _separate(groups: dict[_Group, list[tuple[Named, _Path]]]) -> dict[_Group, str]:
    """Return a stack of its own for each group of blocks that has a role with an index that another group has, too."""
    holders: dict[tuple[str | None, int, str, str | None], list[_Group]] = defaultdict(list)
    for group, members in groups.items():
        for one, path in members:
            what = one.role if one.role in _BLOCK_ROLES else path.rest
            here = holders[(one.stack, path.indices[-1], what, one.module)]
            if not here or here[-1] != group:
                here.append(group)
    together: dict[_Group, set[_Group]] = {}
    for here in holders.values():
        if len(here) > 1:
            merged = set(here).union(*(together.get(group, ()) for group in here))
            together.update(dict.fromkeys(merged, merged))
    names: dict[_Group, str] = {}
    for group, clashing in together.items():
        stack, words = group
        own = _without_common([others for _, others in clashing], words)
        if own:
            names[group] = ".".join([*([stack] if stack else []), *own])
    return names


def _without_common(all_words: Sequence[tuple[str, ...]], words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a name without those that all names begin and end with."""
    shortest = min(map(len, all_words))
    begin = next((at for at in range(shortest) if len({one[at] for one in all_words}) > 1), shortest)
    most = shortest - begin
    end = next((at for at in range(most) if len({one[-1 - at] for one in all_words}) > 1), most)
    return tuple(word for word in words[begin : len(words) - end] if word != "module")


def _numbers(all_indices: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
    """Return the number of each block: its own index if no two blocks share it, else its place among all of them."""
    blocks = sorted(set(all_indices))
    if len({indices[-1] for indices in blocks}) == len(blocks):
        return {indices: indices[-1] for indices in blocks}
    return {indices: number for number, indices in enumerate(blocks)}


def _words(name: str) -> str:
    return ".".join(component for component in name.split(".") if not _is_index(component))


def _is_index(component: str) -> bool:
    return component.isascii() and component.isdigit() and len(component) < 10
