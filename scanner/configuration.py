"""Declarations of configurations: fields of dataclasses that become options of a command and parameters of an identity."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

_KEY = "option"


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
