"""Commands whose options derive from the dataclasses that configure them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from scanner.cli.loading import loading
from scanner.cli.logs import say_error
from scanner.configuration import Option, declaration, default_of, docstrings
from scanner.errors import ScannerError

_MOST = 10_000
#: Longest summary of a command in lists; its first sentence, which is shorter, would be cut by default.
_SENTENCE = 200
_DEFAULT = re.compile(r"[;.,] (?:[Nn]one|[Ee]mpty): (?P<shown>[^;.]+)\.?\s*$")
_ARGUMENT = re.compile(r"`(\w+)`")


def register(
    app: typer.Typer,
    name: str,
    function: Callable[..., None],
    *,
    help: str | None = None,
    aliases: Mapping[str, str] | None = None,
    without: Collection[str] = (),
) -> None:
    """Add a command to an application.

    Parameters of the function whose type is a dataclass become the options of its fields, and the function receives an instance.
    With `Config | None`, it receives None unless one of the options is given. All other parameters are Typer's own.

    Args:
        app: the application.
        name: name of the command.
        function: what the command does.
        help: text of the help; None: the docstring of the function.
        aliases: flags that are accepted, but not shown, and the flags that they stand for.
        without: fields of the configurations that are no options of this command.
    """
    expanded = _Expanded(function, without)

    class Verb(_Command):
        pass

    Verb.aliases = {**expanded.aliases, **(aliases or {})}
    text = _reflowed(help or function.__doc__ or "").replace("[", "\\[")
    app.command(name, cls=Verb, help=text)(expanded.call)


def given(context: typer.Context, *kinds: type) -> list[str]:
    """Return the flags of these configurations that are on the command line."""
    names = {one.name for kind in kinds if (config := _config_of(kind)) is not None for one in config.options}
    return [
        _shown_name(param)
        for param in context.command.params
        if param.name in names and getattr(context.get_parameter_source(param.name), "name", "") == "COMMANDLINE"
    ]


def _reflowed(text: str) -> str:
    """Join the lines of every paragraph, which the terminal breaks at its own width; indented lines are kept."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(one if one.startswith(" ") else " ".join(one.split()) for one in paragraphs)


def given_names(context: typer.Context) -> set[str]:
    """Return the names of the parameters that were given to a command, even if the value is the default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


class _Command(TyperCommand):
    """A command that accepts old names of its options, and that prints flags where an error of the library names arguments."""

    aliases: Mapping[str, str] = {}

    def get_params(self, ctx: Any) -> Any:
        return _without_types_of_flags(super().get_params(ctx))

    def get_short_help_str(self, limit: int = _SENTENCE) -> str:
        return super().get_short_help_str(limit)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [self._current(argument) for argument in args])

    def _current(self, argument: str) -> str:
        flag, equals, value = argument.partition("=")
        return f"{self.aliases[flag]}{equals}{value}" if flag in self.aliases else argument

    def invoke(self, ctx: Any) -> Any:
        try:
            with loading():
                return super().invoke(ctx)
        except ScannerError as error:
            names = {param.name: _shown_name(param) for param in self.params if param.name}
            say_error(_with_flags(str(error), names))
            raise typer.Exit(1) from error


class Group(TyperGroup):
    """A group of commands, whose help looks like that of its commands."""

    def get_params(self, ctx: Any) -> Any:
        """Return the options of the group."""
        return _without_types_of_flags(super().get_params(ctx))

    def get_short_help_str(self, limit: int = _SENTENCE) -> str:
        """Return the first sentence of the help."""
        return super().get_short_help_str(limit)


def _without_types_of_flags(params: list[Any]) -> list[Any]:
    """Let the help show no type beside options without a value, where Typer writes `<bool>`."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


def _shown_name(param: Any) -> str:
    """Return the long flag of an option, or the metavar of an argument."""
    long = [name for name in param.opts if name.startswith("--")]
    return long[0] if long else str(param.metavar or param.name.upper())


def _with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Replace the names of arguments in backticks by their flags."""
    return _ARGUMENT.sub(lambda found: flags.get(found[1], found[0]), text)


def _as_help(text: str, flags: Mapping[str, str]) -> str:
    """Write a docstring as help: flags instead of arguments, no backticks, no markup of the terminal."""
    return _with_flags(text, flags).replace("`", "").replace("[", "\\[")


class _Expanded:
    """A function with the options of its configurations as parameters."""

    def __init__(self, function: Callable[..., None], without: Collection[str]) -> None:
        self.aliases: dict[str, str] = {}
        self._function = function
        self._configs: dict[str, _Config] = {}
        found: dict[str, inspect.Parameter] = {}
        hints = get_type_hints(function, include_extras=True)
        for name, parameter in inspect.signature(function).parameters.items():
            config = _config_of(hints[name])
            if config is None:
                added = {name: parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)}
            else:
                config = replace(config, own=tuple(one for one in config.own if one.name not in without))
                self._configs[name] = config
                self.aliases |= {alias: one.flag for one in config.options for alias in one.aliases}
                flags = {one.name: one.flag for one in config.options}
                added = {one.name: one.parameter(flags, optional=config.optional) for one in config.options}
            twice = sorted(found.keys() & added.keys())
            if twice:
                raise TypeError(f"{function.__name__} has two options {twice[0]!r}")
            found |= added

        def call(**given: Any) -> None:
            self._call(given)

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__annotations__ = {}
        call.__signature__ = inspect.Signature([*found.values()])  # type: ignore[attr-defined]
        self.call = call

    def _call(self, given: dict[str, Any]) -> None:
        arguments = dict(given)
        for name, config in self._configs.items():
            values = {one.name: arguments.pop(one.name) for one in config.options}
            if config.optional and all(value is None for value in values.values()):
                arguments[name] = None
            else:
                arguments[name] = config.build(values)
        self._function(**arguments)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """One option on the command line, and how its text becomes the value of a field."""

    name: str
    kind: Any
    about: Option
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + (self.about.name or self.name).replace("_", "-")

    @property
    def aliases(self) -> list[str]:
        return [alias if alias.startswith("-") else f"--{alias}" for alias in self.about.aliases]

    @property
    def _is_text(self) -> bool:
        """Whether Typer reads text, which `value` converts."""
        return get_origin(self.kind) is tuple or self.about.parse is not None or bool(self.about.choices)

    def parameter(self, flags: Mapping[str, str], *, optional: bool) -> inspect.Parameter:
        """Return the parameter that Typer reads; if the configuration is `optional`, its default is None."""
        about, kind = self.about, str if self._is_text else self.kind
        default, shown = self._default(optional)
        if default is None:
            kind = kind | None
        settings: dict[str, Any] = {"help": _as_help(self.help, flags), "metavar": about.metavar, "show_default": shown}
        if self.kind in (int, float):
            settings |= {"min": about.min, "max": about.max}
        if about.positional:
            described: Any = typer.Argument(**settings)
        elif self.kind is bool and self.default is True:
            described = typer.Option(f"{self.flag}/--no-{self.flag[2:]}", *about.flags, **settings)
        else:
            described = typer.Option(self.flag, *about.flags, **settings)
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[kind, described],
            default=inspect.Parameter.empty if default is MISSING else default,
        )

    def _default(self, optional: bool) -> tuple[Any, bool | str]:
        """Return the default that Typer sees, and what the help shows."""
        if self.default is MISSING:
            return (None if optional else MISSING), False
        shown: str | bool = self.about.shown or False
        if optional:
            return None, shown or (False if self.default in (None, (), False) else _as_text(self.default))
        if self.kind is bool:
            return self.default, shown or self.default
        if self.default is None or self.default == ():
            return None, shown
        if self.about.parse is not None and not isinstance(self.default, str):
            return None, shown or str(self.default)
        return (_as_text(self.default) if self._is_text else self.default), shown or True

    def value(self, given: Any) -> Any:
        """Convert what Typer read.

        Raises:
            typer.BadParameter: text that is not a value of the field.
        """
        if not self._is_text or given is None:
            return given
        try:
            if self.about.parse is not None:
                return self.about.parse(given)
            if get_origin(self.kind) is tuple:
                return tuple(self._items(given))
            return self._known(given)
        except ValueError as error:
            hint = (self.about.metavar or self.name.upper()) if self.about.positional else self.flag
            raise typer.BadParameter(str(error), param_hint=hint) from error

    def _items(self, text: str) -> Iterator[Any]:
        kind = get_args(self.kind)[0]
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if kind is int:
            yield from self._integers(parts)
        elif kind is float:
            yield from map(_number, parts)
        else:
            yield from (self._known(part) for part in parts)

    def _integers(self, parts: list[str]) -> Iterator[int]:
        word = self.name.replace("_", " ").removesuffix("s")
        start = int(self.about.min or 0)
        example = f"{start}-{start + 5 if self.about.max is None else int(self.about.max)}"
        for part in parts:
            first, dash, last = part.partition("-")
            if not _is_index(first) or (dash and not _is_index(last)) or (dash and int(last) < int(first)):
                raise ValueError(f"{part!r} is not a {word} or a range like {example}")
            if int(last or first) - int(first) > _MOST:
                raise ValueError(f"{part!r} is a range of more than {_MOST:,} {word}s")
            yield from range(int(first), int(last or first) + 1)

    def _known(self, name: str) -> str:
        known = self.about.choices or _literal_values(get_args(self.kind)[0] if get_args(self.kind) else None)
        if known and name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(known)}")
        return name


@dataclass(frozen=True, kw_only=True)
class _Config:
    """A dataclass, its options, and the dataclasses within it."""

    kind: type
    optional: bool
    own: tuple[_Choice, ...]
    inner: Mapping[str, _Config]

    @property
    def options(self) -> list[_Choice]:
        """All options, in the order of the fields."""
        found: list[_Choice] = []
        own = {one.name: one for one in self.own}
        for declared in fields(self.kind):
            if declared.name in self.inner:
                found += self.inner[declared.name].options
            elif declared.name in own:
                found.append(own[declared.name])
        return found

    def build(self, values: Mapping[str, Any]) -> Any:
        """Make the instance from what Typer read; an option that was not given has the default of its field."""
        arguments = {one.name: one.value(values[one.name]) for one in self.own if values[one.name] is not None}
        return self.kind(**arguments, **{name: config.build(values) for name, config in self.inner.items()})


def _config_of(hint: Any) -> _Config | None:
    """Describe an annotation that is a dataclass, or a dataclass or None; None for everything else."""
    kind, optional = _without_none(hint)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return None
    hints, helps = get_type_hints(kind), docstrings(kind)
    own: list[_Choice] = []
    inner: dict[str, _Config] = {}
    for declared in fields(kind):
        if not declared.init or not declaration(declared).exposed:
            continue
        within = _config_of(hints[declared.name])
        if within is not None:
            inner[declared.name] = within
        else:
            own.append(_choice(declared, hints[declared.name], helps.get(declared.name, "")))
    return _Config(kind=kind, optional=optional, own=tuple(own), inner=inner)


def _choice(declared: Field[Any], hint: Any, text: str) -> _Choice:
    about, (kind, _) = declaration(declared), _without_none(hint)
    found = _DEFAULT.search(text)
    if found is not None:
        text = text[: found.start()] + "."
        if about.shown is None:
            about = replace(about, shown=found["shown"].strip())
    return _Choice(name=declared.name, kind=kind, about=about, default=default_of(declared), help=text)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Return the type in `X | None`, and whether None was there."""
    if get_origin(hint) in (Union, UnionType):
        left = [one for one in get_args(hint) if one is not NoneType]
        if len(left) == 1 and len(get_args(hint)) == 2:
            return left[0], True
    return hint, False


def _literal_values(kind: Any) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _as_text(value: Any) -> str:
    """Write a default as it would be given: `1-10`, `1,5,10`, `a,b`."""
    if not isinstance(value, tuple):
        return str(value)
    if len(value) > 2 and all(type(one) is int for one in value) and value == tuple(range(value[0], value[-1] + 1)):
        return f"{value[0]}-{value[-1]}"
    return ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
