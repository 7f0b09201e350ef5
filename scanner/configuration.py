"""Declarations of configurations: fields of dataclasses that become options of a command and parameters of an identity."""

from __future__ import annotations

import ast
import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scanner.errors import ConfigError

_KEY = "option"
#: Longest text of a value in a message.
_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field declares about itself, beside its type, default and docstring."""

    name: str | None = None
    """Name of the option if it differs from the name of the field."""
    flags: tuple[str, ...] = ()
    """More flags that the help shows, such as "-o"."""
    aliases: tuple[str, ...] = ()
    """More names that are accepted, but not shown."""
    metavar: str | None = None
    """What stands for the value in the help."""
    min: float | None = None
    """Smallest number that is accepted. The dataclass itself checks the numbers of a tuple."""
    max: float | None = None
    """Largest number that is accepted."""
    choices: Sequence[str] = ()
    """Names that are accepted, if no `Literal` lists them."""
    parse: Callable[[str], Any] | None = None
    """Makes the value from text; raises ValueError for text that it does not accept."""
    shown: str | None = None
    """What the help shows as the default."""
    positional: bool = False
    """The value is given by its position and not by a flag."""
    exposed: bool = True
    """False for a field that is not an option."""
    identity: str | None = None
    """Key of the parameter in the identity of a result; None: the parameter does not change the result. The key never changes,
    whatever the name of the field or option."""
    since: str | None = None
    """Version that added the parameter. It enters identities only if it is not at its default: earlier results keep theirs."""
    before: Any = None
    """What earlier versions did, if that is not the default: then this value is the one that does not enter identities."""
    unordered: bool = False
    """In identities, the values of a tuple are sorted and without duplicates."""


def option(default: Any = MISSING, *, default_factory: Any = MISSING, **declared: Any) -> Any:
    """Declare a field of a frozen dataclass; the docstring under the field is the help of its option.

    The option has the name of the field, with hyphens. Its values follow from the type: `bool`, `int`, `float`, `str`, `Path`, a
    `Literal`, one of these or None, and tuples of these, which are written with commas (integers also as ranges: `1-3,7`). The end
    of the docstring may explain a default of None or of an empty tuple: "...; None: one per core." is shown as the default.

    Args:
        default: value if the option is not given; without one, the option is required.
        default_factory: makes the default.
        declared: fields of `Option`.
    """
    return field(default=default, default_factory=default_factory, metadata={_KEY: Option(**declared)})


def declaration(declared: Field[Any]) -> Option:
    """Return what `option` declared about a field; a field without it has the defaults of `Option`."""
    found = declared.metadata.get(_KEY, Option())
    assert isinstance(found, Option)
    return found


def default_of(declared: Field[Any]) -> Any:
    """Return the default of a field, or `dataclasses.MISSING`."""
    return declared.default_factory() if declared.default_factory is not MISSING else declared.default


def parameters(config: Any) -> dict[str, Any]:
    """Return the parameters of a configuration that enter identities, as JSON types, in the order of the fields.

    Fields that are configurations themselves contribute their parameters.
    """
    found: dict[str, Any] = {}
    for declared in fields(config):
        value, about = getattr(config, declared.name), declaration(declared)
        if is_dataclass(value):
            found |= parameters(value)
        elif about.identity is not None and not (about.since is not None and value == _earlier(declared, about)):
            found[about.identity] = _as_json(value, about)
    return found


def _earlier(declared: Field[Any], about: Option) -> Any:
    """Return the value with which versions without the parameter computed."""
    return default_of(declared) if about.before is None else about.before


def _as_json(value: Any, about: Option) -> Any:
    if isinstance(value, tuple | list | set | frozenset):
        values = [_as_json(one, about) for one in value]
        return sorted(set(values)) if about.unordered else values
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


# ---- values of fields


class Checked:
    """Base of the configurations: an instance whose values do not fit what its fields declare cannot be made.

    A subclass with its own `__post_init__` calls that of this class first.

    Raises:
        ConfigError: a value of another type, a number out of range, or a name that is not one of the choices.
    """

    def __post_init__(self) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]
        for declared in fields(self):  # type: ignore[arg-type]
            about = declaration(declared)
            value = getattr(self, declared.name)
            found = _broken(value, hints[declared.name], about)
            if found is None:
                continue
            rule, wrong = found
            problem = f"must {rule}, got {shown(value)}" if wrong is value else f"has {shown(wrong)}, which must {rule}"
            raise ConfigError(declared.name, problem)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _broken(value: Any, hint: Any, about: Option) -> tuple[str, Any] | None:
    """Return the rule that a value breaks, and what breaks it: the value or an item of it. None: it breaks none."""
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        if len(kinds) > 1 or (value is None and len(kinds) < len(get_args(hint))):
            return None
        hint = kinds[0]
    if get_origin(hint) is tuple:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence | Set):
            return "be a list", value
        items = (_broken(item, get_args(hint)[0], about) for item in value)
        return next((found for found in items if found is not None), None)
    names = get_args(hint) if get_origin(hint) is Literal else about.choices
    rule = _rule_of_names(value, names) if names else _rule(value, hint, about)
    return None if rule is None else (rule, value)


def _rule_of_names(value: Any, names: Sequence[str]) -> str | None:
    return None if isinstance(value, str) and value in names else f"be one of {', '.join(names)}"


def _rule(value: Any, kind: Any, about: Option) -> str | None:
    if kind is bool:
        return None if isinstance(value, bool) else "be true or false"
    if kind is str:
        return None if isinstance(value, str | os.PathLike) else "be text"
    if kind not in (int, float):
        return None
    # Numbers of numpy would enter identities as text.
    if not isinstance(value, int if kind is int else (int, float)) or isinstance(value, bool) or math.isnan(value):
        return "be a whole number" if kind is int else "be a number"
    if about.min is not None and value < about.min:
        return f"be at least {about.min:g}"
    if about.max is not None and value > about.max:
        return f"be at most {about.max:g}"
    return None


def shown(value: object) -> str:
    """Return a value for a message: short ones as Python writes them, of others the type."""
    text = repr(value) if isinstance(value, str | bytes | bool | int | float | tuple | list | set | NoneType) else ""
    return text if text and len(text) <= _SHOWN else f"an object of type {type(value).__name__}"


# ---- docstrings of fields


@cache
def docstrings(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass and its bases, in one line; the source is read, not run."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            node = _classes(inspect.getfile(base)).get(base.__qualname__)
            found |= {} if node is None else dict(_documented(node))
    return found


def _documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, following in pairwise(node.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield statement.target.id, " ".join(text.value.split())


@cache
def _classes(path: str) -> dict[str, ast.ClassDef]:
    """Return the class definitions of a source file by qualified name."""
    found: dict[str, ast.ClassDef] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                found[prefix + child.name] = child
                visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{prefix}{child.name}.<locals>.")
            elif isinstance(child, ast.stmt):
                visit(child, prefix)

    visit(ast.parse(Path(path).read_text("utf-8")), "")
    return found
