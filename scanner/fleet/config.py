"""The configuration of a nightly scan: its sections as dataclasses, and reading, checking and writing the TOML file."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from scanner.configuration import Option, declaration, default_of, docstrings, option
from scanner.engine.method import Method
from scanner.engine.options import PoolOptions
from scanner.errors import ConfigError, ScannerError
from scanner.rmt.vocabulary import ENSEMBLES, Ensemble

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(B?)\s*", re.IGNORECASE)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?", re.ASCII)
#: Longest text of the file that an error message repeats.
_MOST_SHOWN = 80

AnyConfig = TypeVar("AnyConfig")


def amount(text: str) -> int:
    """Return the number that a text such as `500 GB`, `70B` or `1.5T` stands for; units are powers of 1000.

    Raises:
        ValueError: it is not a number with a unit.
    """
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not an amount such as 500 GB, 70B or 1500000")
    number, unit, letter = found.groups()
    # 70B are 70 billion parameters, 70 GB are bytes: the letter alone is a unit, behind a unit it is not.
    return round(float(number) * _UNITS[(unit or letter).upper()])


def byte_amount(text: str) -> int:
    """Return the bytes that a text such as `500 GB` stands for.

    Raises:
        ValueError: it is not a number with a unit, or its unit may mean billions.
    """
    number = amount(text)
    if re.search(r"\d\s*B\s*$", text, re.IGNORECASE):
        raise ValueError(
            f"{text!r} may mean bytes or billions of them: write 500 GB, or a number without a unit for bytes"
        )
    return number


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What to watch on the Hub. A model must fit every setting; listed repositories are watched in any case.

    Raises:
        ConfigError: a value that is not accepted, or nothing to watch.
    """

    authors: tuple[str, ...] = ()
    """Users and organizations whose models are watched, any of them; empty: everybody."""
    search: str | None = None
    """Text that the name of a repository contains; None: any name."""
    task: str | None = None
    """Task of the model, such as "text-generation" (`pipeline_tag` of the Hub); None: any task."""
    library: str | None = None
    """Library that the model is for, such as "transformers"; None: any library."""
    tags: tuple[str, ...] = ()
    """Tags that a model must have, all of them; empty: any tags."""
    licenses: tuple[str, ...] = ()
    """Licenses that a model may have, such as "apache-2.0"; empty: any license."""
    min_parameters: int | None = option(None, parse=amount, min=0)
    """Smallest number of parameters, such as "100M"; None: no limit. Models that do not say theirs are left out."""
    max_parameters: int | None = option(None, parse=amount, min=0)
    """Largest number of parameters, such as "70B"; None: no limit. Models that do not say theirs are left out."""
    gated: Literal["any", "no", "only"] = "any"
    """Models whose terms have to be accepted: any: like others, no: left out, only: nothing else."""
    exclude: tuple[str, ...] = ()
    """Patterns of repositories that are left out, such as "*/*-GGUF" (case does not matter)."""
    repositories: tuple[str, ...] = ()
    """Repositories that are watched whatever the other settings say: "org/name" or "org/name@branch"."""
    since_hours: float = option(24.0, min=0)
    """Hours that the first night looks back."""
    overlap_hours: float = option(2.0, min=0)
    """Hours before the newest known release that every listing covers again, because the Hub lists some changes late."""

    def __post_init__(self) -> None:
        for name in self.repositories:
            if not _REPOSITORY.fullmatch(name):
                raise ConfigError("repositories", f"has {name[:_MOST_SHOWN]!r}: write org/name or org/name@branch")
        for name in self.authors:
            if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
                raise ConfigError("authors", f"has {name[:_MOST_SHOWN]!r}: write the name of a user or organization")
        if self.gated not in ("any", "no", "only"):
            raise ConfigError("gated", f"is {self.gated!r}: choose from any, no, only")
        low, high = self.min_parameters, self.max_parameters
        if low is not None and high is not None and low > high:
            raise ConfigError("max_parameters", f"is {high:,}, smaller than min_parameters, {low:,}")
        if not self.lists and not self.repositories:
            raise ConfigError("authors", "is empty: set authors, search, task, library, tags, licenses or repositories")

    @property
    def lists(self) -> bool:
        """Whether the Hub is asked for a listing, and not only for the repositories that are named."""
        return any((self.authors, self.search, self.task, self.library, self.tags, self.licenses))

    @property
    def watch_id(self) -> str:
        """16 hexadecimal digits that identify what is watched; each has a watermark of its own."""
        # What a listing of the Hub depends on: other settings leave models out afterwards, and change nothing that was seen.
        names = (
            "authors",
            "search",
            "task",
            "library",
            "tags",
            "licenses",
            "min_parameters",
            "max_parameters",
            "gated",
        )
        # `exclude` was part of it once; its empty value keeps the ids of stores that know a watch without patterns.
        text = json.dumps({name: getattr(self, name) for name in names} | {"exclude": ()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one night may use. What does not fit waits for the next night."""

    models: int = option(50, min=0)
    """Number of models; 0: no limit."""
    bytes: int = option(500 * 10**9, parse=byte_amount, min=0)
    """Bytes that are read, such as "500 GB"; 0: no limit."""
    hours: float = option(8.0, min=0)
    """Hours of the run; 0: no limit."""
    parameters: int = option(0, parse=amount, min=0)
    """Parameters of all models together, such as "500B"; 0: no limit."""
    upgrade_share: float = option(0.1, min=0, max=1)
    """Share of the budget for scans of an earlier method, which are computed again, as in `scan --upgrade`."""
    order: Literal["newest", "oldest", "popular", "smallest"] = "newest"
    """What comes first, after listed repositories and what failed the night before."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What is computed of a release, beside the scan."""

    compare: bool = True
    """Compare a release with its base where it names one. The base is scanned too, once."""
    ensembles: tuple[Ensemble, ...] = ENSEMBLES
    """Random controls for every shape."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where results are written."""

    store: str = "results"
    """The store: a folder or any fsspec URL."""
    digests: str | None = None
    """Folder or fsspec URL of the digests; None: the folder `digests` in the store."""


@dataclass(frozen=True, kw_only=True)
class Night:
    """How nights follow each other."""

    attempts: int = option(3, min=1)
    """Nights in which a release is tried before it counts as failed."""
    keep_waiting_days: float = option(30.0, min=0)
    """Days after which a release that never fits into the budget is given up."""
    length_hours: float = option(20.0, min=0)
    """Hours from the start of a night in which the same command continues it, with what is left of its budget."""
    lease_minutes: float = option(10.0, min=0.05)
    """Minutes after which another run may take over from one that was killed."""


@dataclass(frozen=True, kw_only=True)
class NightlyConfig:
    """The whole configuration; every field is a section of the file."""

    watch: Watch
    """What to watch on the Hub."""
    budget: Budget = field(default_factory=Budget)
    """What one night may use; what does not fit waits for the next night."""
    compute: Compute = field(default_factory=Compute)
    """What is computed of a release."""
    method: Method = field(default_factory=Method)
    """How a scan is computed: the options of `rmtscan scan`."""
    pool: PoolOptions = field(default_factory=PoolOptions)
    """Where it runs: the options of `rmtscan scan`."""
    output: Output = field(default_factory=Output)
    """Where results are written; a relative path starts at the folder of this file."""
    night: Night = field(default_factory=Night)
    """How nights follow each other."""

    def __post_init__(self) -> None:
        if self.method.values_only and self.compute.compare:
            raise ConfigError(
                "[compute] compare", "needs singular vectors, which [method] values_only leaves out: set it to false"
            )

    def as_json(self) -> str:
        """Return the configuration as JSON, for the table `nights`."""
        return json.dumps(asdict(self), sort_keys=True, default=str)


def read_config(path: str | Path) -> NightlyConfig:
    """Read and check a configuration file.

    Raises:
        ScannerError: there is no such file, it is not TOML, or a section, key or value is not accepted. The message is one line
            that names the key and what is accepted.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ScannerError(f"there is no config {str(path)!r}: 'rmtscan nightly --init {path}' writes one") from error
    except OSError as error:
        raise ScannerError(f"the config {str(path)!r} cannot be read: {error.strerror}") from error
    try:
        found = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ScannerError(f"the config {str(path)!r} is not TOML: {str(error).splitlines()[0]}") from error
    try:
        config = parse_config(found)
    except ConfigError as error:
        raise ScannerError(f"{path}: {error.argument} {error.problem}") from error
    return _from_folder(config, Path(path).resolve().parent)


def parse_config(found: Mapping[str, Any]) -> NightlyConfig:
    """Make the configuration from the sections of a file.

    Raises:
        ConfigError: a section, key or value is not accepted; the argument is `[section] key`.
    """
    sections = _sections()
    for name, value in found.items():
        if name not in sections:
            raise ConfigError(f"[{_shown(name)}]", f"is not a section{_near(name, sections)}")
        if not isinstance(value, dict):
            raise ConfigError(name, f"must be a section, [{name}]")
    built: dict[str, Any] = {name: _build(name, kind, found.get(name, {})) for name, kind in sections.items()}
    return NightlyConfig(**built)


def template() -> str:
    """Return a configuration file with every key, its default and what it means; all but a few lines are comments."""
    about = docstrings(NightlyConfig)
    lines = [
        "# What `rmtscan nightly` does every night; docs/nightly.md explains it. Every key is optional except that [watch] must",
        "# name something. Keys that are commented out have the value that is shown, or are not set.",
    ]
    for section, kind in _sections().items():
        lines += ["", f"[{section}]", *_comment(about[section])]
        for key in _keys(kind):
            value = _EXAMPLES.get((section, key.name))
            shown = value if value is not None else _as_toml(key.default, key)
            lines += ["", *_comment(key.help), f"{'' if value is not None else '# '}{key.name} = {shown}"]
    return "\n".join(lines) + "\n"


#: Values that the written file sets, so that it works as it is.
_EXAMPLES = {
    ("watch", "task"): '"text-generation"',
    ("watch", "library"): '"transformers"',
    ("watch", "max_parameters"): '"10B"',
    ("watch", "gated"): '"no"',
    ("budget", "models"): "50",
    ("budget", "bytes"): '"500 GB"',
    ("budget", "hours"): "8.0",
    ("output", "store"): '"results"',
}


@dataclass(frozen=True, kw_only=True)
class _Key:
    """A key of a section."""

    name: str
    kind: Any
    optional: bool
    about: Option
    default: Any
    help: str


def _sections() -> dict[str, type]:
    return dict(get_type_hints(NightlyConfig))


def _keys(kind: type) -> Iterator[_Key]:
    """Yield the keys of a section; those of dataclasses within it are its own."""
    hints, helps = get_type_hints(kind), docstrings(kind)
    for declared in fields(kind):
        hint, optional = _without_none(hints[declared.name])
        if is_dataclass(hint):
            yield from _keys(hint)  # type: ignore[arg-type]
            continue
        about = declaration(declared)
        name = (about.name or declared.name).replace("-", "_")
        text = helps.get(declared.name, "").replace("`", "").replace("None:", "not set:")
        yield _Key(name=name, kind=hint, optional=optional, about=about, default=default_of(declared), help=text)


def _build(section: str, kind: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    known = {key.name: key for key in _keys(kind)}
    for name in values:
        if name not in known:
            raise ConfigError(f"[{section}] {_shown(name)}", f"is not a key{_near(name, known)}")
    checked = {name: _checked(section, known[name], value) for name, value in values.items()}
    try:
        return _made(kind, checked)
    except ConfigError as error:
        raise ConfigError(f"[{section}] {error.argument}", error.problem) from error


def _made(kind: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    hints = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for declared in fields(kind):  # type: ignore[arg-type]
        hint, _ = _without_none(hints[declared.name])
        name = (declaration(declared).name or declared.name).replace("-", "_")
        if is_dataclass(hint):
            arguments[declared.name] = _made(hint, values)  # type: ignore[arg-type]
        elif name in values:
            arguments[declared.name] = values[name]
    return kind(**arguments)


def _checked(section: str, key: _Key, value: Any) -> Any:
    """Return a value of the type of the key, within its limits."""
    where, about = f"[{section}] {key.name}", key.about

    def wrong(wanted: str) -> ConfigError:
        return ConfigError(where, f"must be {wanted}, got {_shown(json.dumps(value, default=str))}")

    if get_origin(key.kind) is tuple:
        inner = get_args(key.kind)[0]
        if not isinstance(value, list):
            raise wrong(f"a list of {_name(inner)}s")
        return tuple(_one(inner, item, about, wrong, "each item ") for item in value)
    if about.parse is not None and isinstance(value, str):
        try:
            value = about.parse(value)
        except ValueError as error:
            raise ConfigError(where, str(error)) from error
        if key.kind is str:
            return value
    return _one(key.kind, value, about, wrong, "")


def _one(kind: Any, value: Any, about: Option, wrong: Callable[[str], ConfigError], before: str) -> Any:
    choices = tuple(about.choices) or (get_args(kind) if get_origin(kind) is Literal else ())
    if choices:
        if value not in choices:
            raise wrong(f"{before}one of {', '.join(choices)}")
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise wrong(f"{before}{_article(_name(kind))}{' such as 500 GB or 70B' if about.parse and kind is int else ''}")
    if kind in (int, float):
        low, high = about.min, about.max
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            limits = [f"at least {low:g}"] if low is not None else []
            limits += [f"at most {high:g}"] if high is not None else []
            raise wrong(f"{before}a number{', ' if limits else ''}{' and '.join(limits)}")
    return value


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "name"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(kind, str(kind))


def _article(name: str) -> str:
    return name if name in ("text", "true or false") else f"a {name}"


def _near(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return f"{meant} known: {', '.join(known)}"


def _shown(text: str) -> str:
    start = "".join(char if char.isprintable() else "?" for char in text[: _MOST_SHOWN + 1])
    return start if len(start) <= _MOST_SHOWN else f"{start[: _MOST_SHOWN - 1]}…"


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, UnionType):
        left = [one for one in get_args(hint) if one is not NoneType]
        if len(left) == 1:
            return left[0], True
    return hint, False


def _as_toml(value: Any, key: _Key) -> str:
    if value is MISSING or value is None:
        is_text = key.kind is str or get_origin(key.kind) is Literal or key.about.parse is not None
        return '""' if is_text else "0"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> list[str]:
    """Break a text into lines of a comment."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + len(word) < 110:
            lines[-1] += f" {word}"
        else:
            lines.append(f"# {word}")
    return lines


def _from_folder(config: NightlyConfig, folder: Path) -> NightlyConfig:
    """Let relative paths start at the folder of the file: cron has another working directory."""

    def absolute(url: str) -> str:
        return url if "://" in url else str(folder / Path(url).expanduser())

    output = config.output
    store = absolute(output.store)
    digests = absolute(output.digests) if output.digests is not None else f"{store.rstrip('/')}/digests"
    return NightlyConfig(
        **{
            **{one.name: getattr(config, one.name) for one in fields(config)},
            "output": Output(store=store, digests=digests),
        }
    )
