"""Modules whose main tensor holds codes: their other tensors describe the codes, and none of them is a matrix.

Nothing here knows the names that a method of quantization uses, and the config is not asked. A module holds codes if it has
a tensor of integers, or of 4- or 8-bit floats, and tensors of ordinary floats that may be their scales, zero points,
codebooks or rotations. Integers that are something else (positions, masks, tables of tokens) are told apart by where
they are and how many there are.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from itertools import takewhile
from math import prod

from scanner.checkpoint.model import LogicalWeight, TensorEntry
from scanner.checkpoint.names import module_of, printable
from scanner.checkpoint.quantization.names import FLOAT8, WHAT_TO_DO
from scanner.checkpoint.quantization.parts import FLOATS
from scanner.checkpoint.quantization.stored import DTYPE_BITS

_LONG = frozenset({"I64", "U64"})
_WORDS = _LONG | {"I32", "U32"}
# Biases belong to every kind of module; positions and masks are integers in modules that are not quantized.
_BIAS = re.compile(r"(?:^|[._])bias\Z")
_NO_CODES = re.compile(r"(?:^|_)(?:ids?|index|mask|positions?|tokens?|bias|tracked|steps?)\Z")
# A tensor smaller than this part of a weight is no weight beside it: scales of groups of eight or more.
_SMALLEST_GROUP = 8
_MAX_DEPTH = 32
_MAX_SHOWN = 6
_MAX_PARTS = 64


def foreign_modules(
    tensors: Sequence[TensorEntry],
    weights: Mapping[str, LogicalWeight],
    parts: Set[str],
    composed: Set[str],
    dtypes: Collection[str],
) -> dict[str, str]:
    """Return the tensors of modules of codes that are not decoded, each with the reason: one for each module.

    Args:
        tensors: the tensors of one checkpoint, with distinct names.
        weights: what was found so far, by the name of the main tensor.
        parts: names of the tensors of quantized weights of known methods, whether or not they are decoded.
        composed: names of the tensors of adapters and parametrizations, which are accounted for.
        dtypes: stored dtypes that the format decodes: their tensors are no codes.
    """
    modules: dict[str, list[TensorEntry]] = defaultdict(list)
    for entry in tensors:
        modules[module_of(entry.name)].append(entry)
    inside = _inside(modules)
    by_name = {entry.name: entry for entry in tensors}
    ordered = sorted(by_name)
    beside_modules: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        beside_modules[module_of(module)].append(module)
    by_last: dict[str, list[TensorEntry]] = defaultdict(list)
    for entry in tensors:
        if entry.dtype in FLOATS and len(entry.shape) > 1:
            by_last[entry.name.rpartition(".")[2]].append(entry)
    found = _outside(modules.get("", ()), parts | composed, dtypes)
    for module, direct in modules.items():
        if not module:
            continue
        # Beside `q_proj.weight` stands `q_proj_scale`, not `q_proj_norm.weight`.
        after = _with_prefix(ordered, f"{module}_")
        members = [*direct, *(by_name[name] for name in after if "." not in name[len(module) :])]
        unclaimed = [entry for entry in members if entry.name not in parts and not _is_decoded(entry, weights)]
        decoded = [weights[entry.name] for entry in direct if _is_decoded(entry, weights)]
        codes = [] if decoded else [entry for entry in direct if _may_be_codes(entry, dtypes)]
        floats = [entry for entry in unclaimed if entry.dtype in FLOATS and not _BIAS.search(entry.name)]
        if decoded:
            linear = {weight.name for weight in decoded} == {f"{module}.weight"}
            beside = [
                entry
                for entry in floats
                if entry.name not in composed and _describes(entry, decoded, whole=linear and entry in direct)
            ]
            if not beside:
                continue
            codes = [weight.entry for weight in decoded]
        else:
            codes = _main(codes, floats)
            # Some methods keep codebooks in a module of their own.
            inner = [entry for entry in inside.get(module, ()) if entry.name not in parts]
            below = _belonging(codes, direct, inner) if codes else []
            members += below
            beside = [*floats, *(entry for entry in below if entry.dtype in FLOATS)]
            if codes and not beside and not parts & {entry.name for entry in direct}:
                outer = module_of(module)
                named = [other for other in beside_modules[outer] if other != module and _is_named_after(other, module)]
                around = [*modules.get(outer, ()), *(entry for other in named for entry in modules[other])]
                # A dictionary of parameters has no dots in its keys.
                beside = _small([*(around if outer else ()), *by_last[module.replace(".", "_")]], codes)
                members += beside
        # Where nothing would be analyzed, and only single numbers stand beside, the reasons given so far say more.
        listed = any(entry.name in weights and len(entry.shape) > 1 for entry in members)
        if codes and beside and (listed or any(prod(entry.shape) > 1 for entry in beside)):
            reason = _reason(module, codes, beside)
            found |= {entry.name: reason for entry in members}
    return found


def _is_decoded(entry: TensorEntry, weights: Mapping[str, LogicalWeight]) -> bool:
    """Tell whether a tensor is the main tensor of a weight that a codec of quantization decodes."""
    weight = weights.get(entry.name)
    return weight is not None and (entry.dtype in FLOAT8 or entry.dtype not in FLOATS) and bool(weight.companions)


def _may_be_codes(entry: TensorEntry, dtypes: Collection[str]) -> bool:
    if entry.dtype in FLOATS or entry.dtype in dtypes or entry.dtype in ("BOOL", "F8_E8M0", "C64"):
        return False
    last = entry.name.rpartition(".")[2]
    square = len(entry.shape) > 2 and entry.shape[-1] == entry.shape[-2] == prod(entry.shape) // max(entry.shape[-1], 1)
    return prod(entry.shape) > 1 and not square and not _NO_CODES.search(last)


def _main(codes: Sequence[TensorEntry], floats: Sequence[TensorEntry]) -> list[TensorEntry]:
    """Return the codes if they are the main tensors of their module, else nothing."""
    entries = sum(prod(entry.shape) for entry in codes)
    bits = sum(prod(entry.shape) * DTYPE_BITS.get(entry.dtype, 8) for entry in codes)
    tables = all(entry.dtype in _WORDS or len(entry.shape) < 2 for entry in codes)
    for entry in floats:
        size = prod(entry.shape)
        # Words and lists may also index a weight, which they could not hold: there are no codes of less than one bit.
        if size > bits and tables:
            return []
        if _is_weight(entry) and (size >= entries or not any(_fits(one, [entry]) for one in codes)):
            return []
    # Tables of indices are as long as what they index, which need not fit what stands beside them; a list of counts has one
    # for each row of a larger matrix.
    largest = max((prod(entry.shape) for entry in floats if len(entry.shape) > 1), default=0)
    return [
        entry
        for entry in codes
        if entry.dtype not in _LONG or (_fits(entry, floats) and (len(entry.shape) > 1 or prod(entry.shape) >= largest))
    ]


def _is_weight(entry: TensorEntry) -> bool:
    return entry.name.endswith(".weight") and len(entry.shape) > 1


def _fits(codes: TensorEntry, floats: Sequence[TensorEntry]) -> bool:
    sides = {extent for extent in codes.shape if extent > 1}
    return any(sides & set(entry.shape) for entry in floats)


def _describes(entry: TensorEntry, decoded: Sequence[LogicalWeight], *, whole: bool) -> bool:
    """Tell whether a matrix that no decoder asked for is no weight: too small for one, or in a module that has its `weight`."""
    smallest = min(prod(weight.shape) for weight in decoded)
    small = whole or prod(entry.shape) * _SMALLEST_GROUP <= smallest
    return len(entry.shape) > 1 and min(entry.shape[-2:]) > 1 and small


def _outside(entries: Sequence[TensorEntry], parts: Set[str], dtypes: Collection[str]) -> dict[str, str]:
    """Return the tensors outside of all modules that describe codes there, with the codes: `a_codes` and `a_scale`."""
    groups: dict[str, list[TensorEntry]] = defaultdict(list)
    for entry in entries:
        if entry.name not in parts:
            groups[entry.name.rpartition("_")[0]].append(entry)
    found: dict[str, str] = {}
    for stem, members in groups.items():
        floats = [entry for entry in members if entry.dtype in FLOATS and not _BIAS.search(entry.name)]
        codes = _main([entry for entry in members if _may_be_codes(entry, dtypes) and len(entry.shape) > 1], floats)
        # Small against one of them: nothing but the names says that they belong together.
        beside = _small(floats, [max(codes, key=lambda entry: prod(entry.shape))]) if codes else []
        if beside and len(beside) == sum(len(entry.shape) > 1 for entry in floats):
            reason = _reason(stem, codes, beside)
            found |= {entry.name: reason for entry in members}
    return found


def _is_named_after(other: str, module: str) -> bool:
    """Tell whether the name of a module contains that of the module beside it: `q_proj_scales`, `scale_q_proj`."""
    words, own = (name.rpartition(".")[2] for name in (other, module))
    return words.startswith(f"{own}_") or words.endswith(f"_{own}")


def _belonging(
    codes: Sequence[TensorEntry], direct: Sequence[TensorEntry], below: Sequence[TensorEntry]
) -> list[TensorEntry]:
    """Return the tensors of inner modules if they describe the codes, instead of being modules in their own right."""
    ordinary = [entry for entry in below if entry.dtype in FLOATS]
    described = any(
        entry.dtype in FLOATS and prod(entry.shape) > 1 and not _BIAS.search(entry.name) for entry in direct
    )
    smaller = sum(entry.size for entry in ordinary) <= sum(entry.size for entry in codes)
    return list(below) if ordinary and (described or smaller) else []


def _small(outer: Sequence[TensorEntry], codes: Sequence[TensorEntry]) -> list[TensorEntry]:
    """Return matrices of the outer module that are no weights beside codes whose scales are nowhere else."""
    entries = sum(prod(entry.shape) for entry in codes)
    return [
        entry
        for entry in outer
        if entry.dtype in FLOATS and len(entry.shape) > 1 and prod(entry.shape) * _SMALLEST_GROUP // 2 <= entries
    ]


def _with_prefix(ordered: Sequence[str], prefix: str) -> Iterator[str]:
    """Yield the names in a sorted sequence that begin with a prefix, at most as many as describe one weight."""
    start = bisect_left(ordered, prefix)
    return takewhile(lambda name: name.startswith(prefix), ordered[start : start + _MAX_PARTS])


def _inside(modules: Mapping[str, Sequence[TensorEntry]]) -> dict[str, list[TensorEntry]]:
    """Return the tensors in the inner modules of each module that holds integers, at any depth."""
    holding = {module for module, direct in modules.items() if any(entry.dtype not in FLOATS for entry in direct)}
    found: dict[str, list[TensorEntry]] = defaultdict(list)
    for module, direct in modules.items():
        components = module.split(".", _MAX_DEPTH)
        for depth in range(1, len(components)):
            outer = ".".join(components[:depth])
            if outer in holding:
                found[outer] += direct
    return found


def _reason(module: str, codes: Sequence[TensorEntry], beside: Sequence[TensorEntry]) -> str:
    def shown(entries: Sequence[TensorEntry]) -> str:
        names = [printable(entry.name.removeprefix(f"{module}.").removeprefix(f"{module}_")) for entry in entries]
        return ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")

    kinds = "/".join(sorted({printable(entry.dtype) for entry in codes}))
    return f"quantized in a way that is not decoded ({kinds} codes {shown(codes)} with {shown(beside)}): {WHAT_TO_DO}"
