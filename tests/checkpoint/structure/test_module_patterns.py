"""PEFT's patterns: what they name is what PEFT's own rule names, and no expression takes long."""

import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.checkpoint.structure.module_patterns import by_pattern
from scanner.errors import CheckpointError

MODULES = [f"model.layers.{layer}.{name}" for layer in (0, 3, 11, 30) for name in ("self_attn.q_proj", "mlp.up_proj")]
MODULES += ["q_proj", "lm_head", "encoder.layer.1.attention.self.query", "a", "b.a", "h.0-1/x"]


def as_peft_finds_it(patterns: dict[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """Its rule, in its own engine."""
    found = {}
    for module in modules:
        key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)
        if key in patterns:
            found[module] = patterns[key]
    return found


SAFE = [
    "q_proj", "up_proj", "proj", ".*proj", ".*", "", "a", "b.a", "b\\.a", "^q_proj", "^model.*", "layers.3.*", r"layers\.(0|3)\..*",
    r"layers\.\d\..*", r"layers\.\d+\.mlp\.up_proj", r"layers\.\d{2}\.mlp.*", r"layers\.[0-3]\.[^.]+\.\w+", "q_proj$", "^a$",
    "(?:q|up)_proj", "q_proj|lm_head", "lm_head|.*mlp.*", "x*", "(a|b)+", ".*?proj", r"\bquery", "a)|(b", r"\w{1,}_head",
    r"h\.0\-1\/x",
    "[hb].*", r"model\.layers\.\d{1,2}\.self_attn\.[qkv]_proj", "(((((a)))))", "(|a)", "q_proj.", "(a*)*(b)?",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SAFE)
def test_a_pattern_names_what_it_names_to_peft(pattern: str) -> None:
    patterns = {pattern: 5, "up_proj": 7, "model.layers.3.self_attn.q_proj": 9}
    assert by_pattern(patterns, MODULES, "alpha_pattern") == as_peft_finds_it(patterns, MODULES)


PIECES = st.sampled_from(
    [*"abq3.|()*+?{}[]^$-\\,", *r"model layers \. \d \w (?: .* {2} {,2} [a-z] (?! (?i) (?i: \Z".split()]
)


@settings(max_examples=1000, deadline=None)
@given(pattern=st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=8))
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_any_expression_is_understood_as_peft_does_or_refused(pattern: str) -> None:
    try:
        found = by_pattern({pattern: 5}, MODULES, "alpha_pattern")
    except CheckpointError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert found == as_peft_finds_it({pattern: 5}, MODULES)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=q).*",
        "(?!a)b",
        "(?i)Q_PROJ",
        r"(a)\1",
        "(?P<n>a)",
        "[[:alpha:]]",
        "a{,2}",
        r"a\Z",
        "a*+",
        "(",
        "[",
        "ä",
        "a" * 1001,
    ],
)
def test_what_the_engines_may_understand_differently_is_refused(pattern: str) -> None:
    with pytest.raises(CheckpointError, match=r"alpha_pattern has the expression .* which is not supported"):
        by_pattern({pattern: 5}, MODULES, "alpha_pattern")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*b", ".*.*.*.*.*.*.*.*.*=", "(a?){50}a{50}b", "((a{0,99}){0,99}){0,99}b", "(" * 400 + ")" * 400],
)
def test_no_expression_takes_long(pattern: str) -> None:
    modules = [f"{'a' * 5000}.{at}" for at in range(20)]
    started = time.process_time()
    try:
        assert by_pattern({pattern: 5}, modules, "alpha_pattern") == {}
    except CheckpointError as error:
        assert "which is not supported" in str(error)  # noqa: PT017
    assert time.process_time() - started < 20


@pytest.mark.parametrize("patterns", [["q_proj"], "q_proj", 3, {str(at): at for at in range(1001)}])
def test_what_is_no_mapping_is_refused(patterns: Any) -> None:
    with pytest.raises(CheckpointError, match="not a mapping"):
        by_pattern(patterns, MODULES, "alpha_pattern")
