r"""PEFT's patterns for the names of modules: regular expressions of strangers, matched in time that grows with their length only.

A pattern names a module if `re.match(rf"(.*\.)?({pattern})$", module)` finds something, and the first pattern that names
it counts (PEFT, `get_pattern_key` in peft/utils/other.py). Python's `re` may take for ever with a stranger's expression;
RE2, which pyarrow brings, cannot. It is asked only where both mean the same by what is written.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

_LONGEST = 1000
_MOST = 1000
# What both engines read alike in names of ASCII: all but lookaround, references, flags, classes of their own, `{,n}`, `\Z`.
_COMMON = re.compile(
    r"""(?:[^\\\[\](){}*+?|^$\x00-\x1f\x7f-\U0010ffff]      # a literal, or a dot
        |\\[dDwWsSbB.^$*+?()\[\]{}|/_:-]                    # a class or an escaped literal
        |\[\^?(?:[A-Za-z0-9_.:/ -]|\\[dDwWsS.\]\[^-])+\]     # a set
        |\((?:\?:|(?!\?))|\)|\||\^|\$
        |[*+?]\??(?![*+?{])
        |\{\d{1,3}(?:,\d{0,3})?\}\??(?![*+?{])
        )*""",
    re.VERBOSE,
)


def by_pattern(patterns: object, modules: Sequence[str], what: str) -> dict[str, Any]:
    """Return, for each module that a pattern names, the value of the first that does.

    Args:
        patterns: pattern -> value, as an adapter's config holds them; None: there are none.
        modules: names as the model itself spells them.
        what: the key in the config, for messages.

    Raises:
        CheckpointError: they are no such mapping, too many, or hold what is not sure to mean here what it means to PEFT.
    """
    if not patterns:
        return {}
    if not isinstance(patterns, Mapping) or len(patterns) > _MOST:
        raise CheckpointError(f"the adapter's {what} is not a mapping from at most {_MOST} names of modules to numbers")
    found: dict[str, Any] = {}
    for pattern, value in patterns.items():
        for module in _matching(str(pattern), [module for module in modules if module not in found], what):
            found[module] = value
    # PEFT falls back to the name itself as a key, whatever that would mean as an expression.
    return {module: patterns[module] for module in modules if module in patterns} | found


def _matching(pattern: str, modules: Sequence[str], what: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = rf"(.*\.)?({pattern})$"
    try:
        if len(pattern) > _LONGEST or not _COMMON.fullmatch(pattern):
            raise ValueError("it has more than literals, sets, repetitions, groups and alternatives")
        re.compile(whole)
        if not all(module.isascii() and module.isprintable() for module in modules):
            raise ValueError("there are modules with other names than ASCII")
        matches = pc.match_substring_regex(pa.array(modules, pa.string()), rf"^(?:{whole})")
    except (ValueError, RecursionError, OverflowError, re.error) as error:  # also what pyarrow raises
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"the adapter's {what} has the expression '{printable(pattern)}', which is not matched here ({printable(reason)}): "
            "write the names of the modules out, or merge the adapter into its model (PEFT's merge_and_unload) and scan "
            "delta:BASE..MERGED"
        ) from error
    return [module for module, matched in zip(modules, matches.to_pylist(), strict=True) if matched]
