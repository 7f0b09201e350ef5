"""Named queries: `.sql` files with a header that describes the answer, the parameters, the columns, and what a terminal shows."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scanner.errors import QueryError
from scanner.extensions import load_extensions

_STORE = Path(__file__).resolve().parent
_FOLDERS = (_STORE.parent / "queries", _STORE.parent.parent / "queries")  # in an installed wheel; in a checkout
_ENTRY = re.compile(r"-- (title|about|chart|param|column|show|total of one model|total): (\S.*)")
_CONTINUED = re.compile(r"--   +(\S.*)")
_PARAMETER = re.compile(r"([a-z]\w*) ([A-Z]+)(?: = (.*?))? \| (\S.*)", re.DOTALL)
_COLUMN = re.compile(r"([a-z]\w*)(?: \[([^\]]+)\])? \| (\S.*)", re.DOTALL)
_SHOWN = re.compile(r"([a-z]\w*)(?: = ([a-z]\w*) (\||->|x|\.\.) ([a-z]\w*))?")
_TAGS = ("title", "about", "chart", "param", "column", "show", "total", "total of one model")
#: What stands between two values in one cell, by the sign in the header.
_BETWEEN = {"|": "|", "->": " → ", "x": "×", "..": "…"}

Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a query."""

    name: str
    type: str
    """VARCHAR, INTEGER, DOUBLE, BOOLEAN, or MODEL: the name of a model of the store, or a part of it that no other name has."""
    required: bool
    """Whether it has no default."""
    default: Value
    help: str

    def convert(self, value: object) -> Value:
        """Convert `value`, which may be text from a command line, to the type of the parameter; None stays None (NULL in SQL).

        Raises:
            ValueError: it cannot be converted.
        """
        return None if value is None else _CONVERSIONS[self.type](value)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the answer to a query."""

    name: str
    help: str
    unit: str = ""
    """Unit of the values; empty if they have none, or the name says it."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One column of the table that a terminal shows: a column of the answer, or two of them in one cell."""

    name: str
    columns: tuple[str, ...]
    """The column, or both."""
    between: str = ""
    """What stands between the values of two columns."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A named query."""

    name: str
    title: str
    about: str
    """How to read the answer."""
    params: tuple[Parameter, ...]
    columns: tuple[Column, ...]
    sql: str
    figures: tuple[str, ...] = ()
    """Figures that draw the answer, which has too many rows to be read; empty for other queries."""
    shown: tuple[Shown, ...] = ()
    """Columns that a terminal shows by default; empty: all."""
    totals: tuple[str, ...] = ()
    """Columns whose sum over all rows means something."""
    totals_of_one: bool = False
    """Whether it means something only if all rows are of one model (or pair of models)."""

    def bind(self, values: Mapping[str, object]) -> dict[str, Value]:
        """Return a value for every parameter, with defaults filled in.

        Raises:
            QueryError: a parameter is unknown or missing, or a value does not fit its type.
        """
        known = {param.name: param for param in self.params}
        for name in values:
            if name not in known:
                raise QueryError(f"query {self.name!r} has no parameter {_suggest(name, known)}")
        bound = {}
        for name, param in known.items():
            if name not in values:
                if param.required:
                    raise QueryError(f"query {self.name!r} needs parameter {name!r}: {param.help}")
                bound[name] = param.default
                continue
            try:
                bound[name] = param.convert(values[name])
            except ValueError as error:
                raise QueryError(f"query {self.name!r}, parameter {name!r}: {error}") from error
        return bound


def parse_query(name: str, text: str) -> Query:
    """Parse the text of a query file.

    Raises:
        ValueError: the header is invalid.
    """
    entries: list[tuple[str, str]] = []
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    for line in lines[:header]:
        if match := _ENTRY.fullmatch(line):
            entries.append((match[1], match[2]))
        elif (match := _CONTINUED.fullmatch(line)) and entries:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]}\n{match[1]}")
        else:
            raise ValueError(f"query {name!r}: header line {line!r} is not '-- {'|'.join(_TAGS)}: ...'")
    tags = [tag for tag, _ in entries]
    if tags != sorted(tags, key=_TAGS.index) or tags.count("title") != 1 or tags.count("about") != 1:
        raise ValueError(f"query {name!r}: the header needs one title, one about, then params, then columns")
    if any(tags.count(tag) > 1 for tag in ("chart", "show")) or sum(tag.startswith("total") for tag in tags) > 1:
        raise ValueError(f"query {name!r}: chart, show and total can occur once")
    params = tuple(_parse_parameter(name, value) for tag, value in entries if tag == "param")
    columns = tuple(_parse_column(name, value) for tag, value in entries if tag == "column")
    for names in ([param.name for param in params], [column.name for column in columns]):
        if len(names) != len({*names}):
            raise ValueError(f"query {name!r}: declared twice in {names}")
    if not columns or not "".join(lines[header:]).strip():
        raise ValueError(f"query {name!r}: no column is declared, or there is no SQL")
    title, about = entries[0][1], entries[1][1]
    if "\n" in title:
        raise ValueError(f"query {name!r}: the title must be one line")
    shown = tuple(_parse_shown(name, item) for item in _items(entries, "show"))
    totals = (*_items(entries, "total"), *_items(entries, "total of one model"))
    figures = tuple(_items(entries, "chart"))
    known = {column.name for column in columns}
    wrong = [one for one in (*totals, *(part for item in shown for part in item.columns)) if one not in known]
    if wrong:
        raise ValueError(f"query {name!r}: {wrong[0]!r} is shown or summed, and is not a column")
    return Query(
        name=name,
        title=title,
        about=about,
        params=params,
        columns=columns,
        sql=text,
        figures=figures,
        shown=shown,
        totals=totals,
        totals_of_one="total of one model" in tags,
    )


def _items(entries: list[tuple[str, str]], wanted: str) -> list[str]:
    """Return the items of the entry with this tag, which are separated by commas."""
    return [item.strip() for tag, text in entries if tag == wanted for item in " ".join(text.split()).split(",")]


def _parse_shown(query: str, text: str) -> Shown:
    match = _SHOWN.fullmatch(text)
    if match is None:
        raise ValueError(f"query {query!r}: {text!r} is not 'COLUMN' or 'NAME = COLUMN | COLUMN' (or ->, x, ..)")
    name, first, sign, second = match.groups()
    if first is None:
        return Shown(name=name, columns=(name,))
    return Shown(name=name, columns=(first, second), between=_BETWEEN[sign])


_REGISTERED: dict[str, str] = {}


def register_query(name: str, text: str) -> None:
    """Make a named query of an extension known.

    Args:
        name: its name.
        text: what would be the content of a file in `queries/`: a header comment and one SELECT statement.

    Raises:
        ValueError: the header is invalid, or a query of the package has this name.
    """
    parse_query(name, text)
    if name in _packaged():
        raise ValueError(f"query {name!r} is already a query of the package")
    _REGISTERED[name] = text


def load_queries() -> dict[str, Query]:
    """Return all queries by name, in alphabetical order, those of extensions included."""
    load_extensions()
    texts = _packaged() | _REGISTERED
    return {name: parse_query(name, texts[name]) for name in sorted(texts)}


def _packaged() -> dict[str, str]:
    """Return the texts of the queries that the package contains, by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise RuntimeError(f"the queries of the package are missing: none of {[str(path) for path in _FOLDERS]} exists")
    return {path.stem: path.read_text("utf-8") for path in folder.glob("*.sql")}


def find_query(name: str) -> Query:
    """Return the query of a name.

    Raises:
        QueryError: there is none; the message lists the known queries and the most similar name.
    """
    queries = load_queries()
    if name not in queries:
        near = difflib.get_close_matches(name, queries, n=1)
        if near:  # a list of all would hide the answer
            raise QueryError(f"there is no query {name!r}; did you mean {near[0]!r}? rmtscan query --list lists all")
        raise QueryError(f"there is no query {_suggest(name, queries)}")
    return queries[name]


def _suggest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{name!r}{meant} known: {', '.join(known) or 'none'}"


def _parse_parameter(query: str, text: str) -> Parameter:
    match = _PARAMETER.fullmatch(text)
    if match is None or match[2] not in _CONVERSIONS:
        raise ValueError(
            f"query {query!r}: {text!r} is not 'NAME VARCHAR|MODEL|INTEGER|DOUBLE|BOOLEAN [= DEFAULT] | help'"
        )
    name, kind, default, help_text = match.groups()
    try:
        value = None if default in (None, "NULL") else _CONVERSIONS[kind](default)
    except ValueError as error:
        raise ValueError(f"query {query!r}: default of {name!r}: {error}") from error
    return Parameter(name=name, type=kind, required=default is None, default=value, help=help_text)


def _parse_column(query: str, text: str) -> Column:
    match = _COLUMN.fullmatch(text)
    if match is None:
        raise ValueError(f"query {query!r}: {text!r} is not 'NAME | what it is' or 'NAME [UNIT] | what it is'")
    return Column(name=match[1], unit=match[2] or "", help=match[3])


def _to_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _to_integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{value!r} is not a whole number")
    try:
        number = int(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a whole number") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{value!r} is out of range")
    return number


def _to_double(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def _to_boolean(value: object) -> bool:
    truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(str(value).lower())
    if truth is None:
        raise ValueError(f"{value!r} is neither true nor false")
    return truth


_CONVERSIONS: dict[str, Callable[[object], Value]] = {
    "VARCHAR": _to_text,
    "MODEL": _to_text,
    "INTEGER": _to_integer,
    "DOUBLE": _to_double,
    "BOOLEAN": _to_boolean,
}
