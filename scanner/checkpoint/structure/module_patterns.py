r"""The patterns for module names in PEFT configs: untrusted regular expressions, matched in linear time.

A pattern applies to a module if `re.match(rf"(.*\.)?({pattern})$", module)` succeeds, and the first such pattern counts
(PEFT, `get_pattern_key` in peft/utils/other.py). Python's `re` may take exponential time for a hostile expression; RE2,
which pyarrow contains, cannot. Only expressions that mean the same in both engines are matched.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

_LONGEST = 1000
_MOST = 1000
# What means the same in both engines for ASCII names: no lookaround, references, flags, engine-specific classes, `{,n}`, `\Z`.
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
    """Return, for each module that a pattern applies to, the value of the first such pattern.

    Args:
        patterns: pattern -> value, from the config of an adapter; None if there are none.
        modules: names of modules in the model.
        what: the key in the config, for messages.

    Raises:
        CheckpointError: this is not a mapping, there are too many patterns, or one may mean something else in PEFT.
    """
    if not patterns:
        return {}
    if not isinstance(patterns, Mapping) or len(patterns) > _MOST:
        raise CheckpointError(f"the adapter's {what} is not a mapping from at most {_MOST} names of modules to numbers")
    found: dict[str, Any] = {}
    for pattern, value in patterns.items():
        for module in _matching(str(pattern), [module for module in modules if module not in found], what):
            found[module] = value
    # PEFT falls back to the name itself as a key, even if it would mean something else as an expression.
    return {module: patterns[module] for module in modules if module in patterns} | found


def _matching(pattern: str, modules: Sequence[str], what: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = rf"(.*\.)?({pattern})$"
    try:
        if len(pattern) > _LONGEST or not _COMMON.fullmatch(pattern):
            raise ValueError("only literals, sets, repetitions, groups and alternatives are supported")
        re.compile(whole)
        if not all(module.isascii() and module.isprintable() for module in modules):
            raise ValueError("there are modules with names that are not ASCII")
        matches = pc.match_substring_regex(pa.array(modules, pa.string()), rf"^(?:{whole})")
    except (ValueError, RecursionError, OverflowError, re.error) as error:  # also what pyarrow raises
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"the adapter's {what} has the expression '{printable(pattern)}', which is not supported ({printable(reason)}): "
            "list the names of the modules, or merge the adapter into its model (PEFT's merge_and_unload) and scan "
            "delta:BASE..MERGED"
        ) from error
    return [module for module, matched in zip(modules, matches.to_pylist(), strict=True) if matched]
