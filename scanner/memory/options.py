"""The method of a scan from keyword arguments: each option of `Method` and `Selection` under its name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from scanner.checkpoint import Selection
from scanner.configuration import declaration, default_of
from scanner.engine import Method
from scanner.errors import ConfigError


def method_of(method: Method | None, options: Mapping[str, Any]) -> Method:
    """Return the method that a caller asks for.

    Args:
        method: a method; None: the defaults.
        options: fields of `Method` and `Selection`, under their names or those of their options (`roles` is `only`). Where several
            values are accepted, one value alone stands for itself.

    Raises:
        ConfigError: an unknown option, a value that is not accepted, or options beside a method.
    """
    if method is not None and not isinstance(method, Method):
        raise ConfigError("method", f"is a {type(method).__name__}: pass a `scanner.Method`")
    if method is not None and options:
        raise ConfigError(next(iter(options)), "is given beside `method`: set it there, or leave `method` out")
    if method is not None:
        return method
    of_method, of_selection = _names(Method), _names(Selection)
    unknown = [name for name in options if name not in of_method and name not in of_selection]
    if unknown:
        known = list(dict.fromkeys([*of_method, *of_selection]))
        near = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(unknown[0], f"is no option of a scan: {meant}known: {', '.join(known)}")
    chosen: dict[str, Any] = {
        of_selection[name][0]: _value(of_selection[name], value)
        for name, value in options.items()
        if name in of_selection
    }
    others: dict[str, Any] = {
        of_method[name][0]: _value(of_method[name], value) for name, value in options.items() if name in of_method
    }
    if chosen:
        others["selection"] = Selection(**chosen)
    return Method(**others)


def _names(kind: type) -> dict[str, tuple[str, bool]]:
    """Return the names under which each field is accepted: (name of the field, whether it takes several values)."""
    found: dict[str, tuple[str, bool]] = {}
    for declared in fields(kind):
        about = declaration(declared)
        several = isinstance(default_of(declared), tuple)
        for name in (about.name or declared.name, declared.name, *about.aliases):
            found[name] = declared.name, several
    return found


def _value(named: tuple[str, bool], value: object) -> object:
    several = named[1]
    if not several or isinstance(value, tuple):
        return value
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (value,)
    return tuple(value)
