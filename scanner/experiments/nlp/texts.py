"""Read the texts that models are run on: a text file, a column of a JSONL, CSV, TSV or Parquet file, or a data set of the Hub."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError

_TABLES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
#: Columns used as the text if none is given; the first that exists.
_TEXT_COLUMNS = ("text", "sentence", "content", "review", "document", "question", "premise", "sentence1")
_LABEL_COLUMNS = ("label", "labels", "class", "target", "sentiment")
_FIELD_LIMIT = 1 << 27
#: A label that is the index of a class.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
#: Upper estimate of the characters per token of any tokenizer.
CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """What to read: `reference` is a file or `owner/name[:config[:split]]` on the Hub.

    For tables, `column`, `second` and `label` name the columns with the text, a second text (for pairs) and the labels; a text or
    label column that is None is found by its usual names. `where` (column, value) selects rows.
    """

    reference: str
    column: str | None = None
    second: str | None = None
    label: str | None = None
    where: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts in the order of the file; `whole` if they are one continuous text, otherwise independent items."""

    name: str
    items: tuple[str, ...]
    whole: bool
    seconds: tuple[str, ...] = ()
    """The second text of each pair; empty if there are no pairs."""
    labels: tuple[str, ...] = ()
    """The label of each item as text; empty if none was requested."""
    _digest: list[str] = field(default_factory=list, repr=False, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of texts and labels; does not depend on where they were read from."""
        if not self._digest:
            content = json.dumps([self.whole, self.items, self.seconds, self.labels], ensure_ascii=False)
            self._digest.append(hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest())
        return self._digest[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """The distinct labels, sorted by value if all are integers, otherwise alphabetically.

        Raises:
            ScannerError: there are fewer than two labels.
        """
        found = sorted({*self.labels})
        if all(map(is_integer, found)):
            found.sort(key=int)
        if len(found) < 2:
            shown = f"but all are {printable(found[0])!r}" if found else "but there are none"
            raise ScannerError(f"{printable(self.name)}: labels of two or more classes are needed, {shown}")
        return tuple(found)


def is_integer(label: str) -> bool:
    """Return whether a label is an integer in decimal digits."""
    return _INTEGER.fullmatch(label) is not None


def read_texts(
    source: TextSource, *, labeled: bool = False, tokens: int | None = None, length: int | None = None
) -> Texts:
    """Read all texts of a source; from a data set of the Hub, which may be very large, only as many rows as `tokens` requires.

    Args:
        source: what to read.
        labeled: whether every text needs a label.
        tokens: number of tokens that are needed; None: read all rows of a data set.
        length: largest number of tokens used per row; None: all.

    Raises:
        ScannerError: the source does not exist, is empty, is not UTF-8, or is not a table of the kind that its name suggests; or a
            column is missing or contains values that are not text.
    """
    path = Path(source.reference).expanduser()
    shown = printable(source.reference)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise ScannerError(f"text {shown} cannot be read: {error.strerror}") from error
    if is_folder:
        raise ScannerError(f"text {shown} is a folder: give a file in it")
    if not is_file:
        enough = None if tokens is None else CHARACTERS_PER_TOKEN * tokens
        each = None if length is None else CHARACTERS_PER_TOKEN * length
        return _from_rows(source, _hub_rows(source.reference), source.reference, labeled, enough, each)
    kind = _TABLES.get(path.suffix.lower())
    if kind is None:
        if labeled or source.column or source.where:
            raise ScannerError(f"text {shown} has no columns: give a {', '.join(_TABLES)} file")
        text = _decoded(path)
        if not text.strip():
            raise ScannerError(f"text {shown} is empty")
        return Texts(name=path.name, items=(text,), whole=True)
    rows = _parquet_rows(path) if kind == "parquet" else _text_rows(path, kind)
    return _from_rows(source, rows, path.name, labeled)


def _from_rows(
    source: TextSource,
    rows: Iterable[Mapping[str, Any]],
    name: str,
    labeled: bool,
    enough: int | None = None,
    each: int | None = None,
) -> Texts:
    """Collect the texts of rows until they have `enough` characters, counting at most `each` per row."""
    held = 0
    shown = printable(source.reference)
    items: list[str] = []
    seconds: list[str] = []
    labels: list[str] = []
    column, label = source.column, source.label
    for number, row in enumerate(rows, start=1):
        if number == 1:
            column = _column(shown, row, column, _TEXT_COLUMNS, "text")
            label = _column(shown, row, label, _LABEL_COLUMNS, "label") if labeled else None
            for other in (source.second, source.where and source.where[0]):
                if other is not None:
                    _column(shown, row, other, (), "")
        if source.where is not None and str(row.get(source.where[0])) != source.where[1]:
            continue
        named = [column or "", *([source.second] if source.second is not None else [])]
        found = [_text(shown, row, name, number) for name in named]
        if not all(text.strip() for text in found):
            continue
        text = found[0]
        items.append(text)
        seconds += found[1:]
        if label is not None:
            value = _label(row.get(label))
            if not value:
                raise ScannerError(f"text {shown}, row {number}: column {printable(label)!r} is empty")
            labels.append(_encodable(shown, value, label, number))
        held += len(text[:each])
        if enough is not None and held >= enough:
            break
    if not items:
        filtered = f" with {source.where[0]}={source.where[1]}" if source.where else ""
        raise ScannerError(f"text {shown} is empty: no row{printable(filtered)} has a text")
    return Texts(name=name, items=tuple(items), whole=False, seconds=tuple(seconds), labels=tuple(labels))


def _column(shown: str, row: Mapping[str, Any], wanted: str | None, usual: tuple[str, ...], what: str) -> str:
    there = _names(row)
    if wanted is not None:
        if wanted not in row:
            raise ScannerError(f"text {shown} has no column {printable(wanted)!r}: it has {there}")
        return wanted
    found = next((name for name in usual if name in row), None)
    if found is None and what == "text":
        strings = [name for name, value in row.items() if isinstance(value, str)]
        found = strings[0] if len(strings) == 1 else None
    if found is None:
        option = "`column`" if what == "text" else "`label`"
        raise ScannerError(f"text {shown}: no {what} column found among {there}; give one as {option}")
    return found


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(printable(str(name)) for name in row)


def _text(shown: str, row: Mapping[str, Any], column: str, number: int) -> str:
    if column not in row:
        raise ScannerError(f"text {shown}, row {number} has no column {printable(column)!r}: it has {_names(row)}")
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ScannerError(f"text {shown}, row {number}: column {printable(column)!r} is not text")
    return _encodable(shown, value, column, number)


def _label(value: Any) -> str:
    """Return a cell as a label without surrounding whitespace; empty for None, NaN and whitespace.

    Floats that are integers are converted back: pandas makes a column of integers float if one of its cells is empty.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _encodable(shown: str, value: str, column: str, number: int) -> str:
    """Return the value if it can be encoded: JSON can contain unpaired surrogates, which tokenizers reject."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ScannerError(
            f"text {shown}, row {number}: column {printable(column)!r} has an unpaired surrogate "
            f"({printable(value[error.start])}): correct or remove that row"
        ) from error
    return value


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ScannerError(
            f"text {printable(str(path))} is not UTF-8 (byte {error.start}): convert it first, for example with iconv"
        ) from error
    except OSError as error:
        raise ScannerError(f"text {printable(str(path))} cannot be read: {error.strerror}") from error


def _text_rows(path: Path, kind: str) -> Iterator[Mapping[str, Any]]:
    text, shown = _decoded(path), printable(str(path))
    if kind == "jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ScannerError(f"text {shown}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ScannerError(f"text {shown}, line {number} is not a JSON object")
            yield row
        return
    csv.field_size_limit(_FIELD_LIMIT)
    # Tab-separated files usually have no quoting, and a sentence may begin with a quotation mark.
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {}
    reader = csv.DictReader(io.StringIO(text, newline=""), **options)
    try:
        columns = Counter(reader.fieldnames or ())
        twice = next((name for name, times in columns.items() if times > 1), None)
        if twice is not None:
            raise ScannerError(f"text {shown} has two columns {printable(twice)!r}: rename one")
        for row in reader:
            if None in row or None in row.values():
                raise ScannerError(
                    f"text {shown}, line {reader.line_num}: the number of fields differs from the number of columns"
                )
            yield row
    except csv.Error as error:
        raise ScannerError(f"text {shown}, line {reader.line_num} is not {kind.upper()}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.dataset

    try:
        for batch in pyarrow.dataset.dataset(path, format="parquet").to_batches():
            yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise ScannerError(
            f"text {printable(str(path))} has a string column that is not UTF-8: write the file again from decoded text"
        ) from error
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ScannerError(f"text {printable(str(path))} cannot be read as Parquet: {printable(reason)}") from error


def _hub_rows(reference: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of `owner/name[:config[:split]]` in the order of the data set, with the library `datasets`."""
    shown = printable(reference)
    name, *more = reference.split(":")
    if "/" not in name or name.startswith((".", "/", "~")) or len(more) > 2 or Path(name).suffix in {*_TABLES, ".txt"}:
        raise ScannerError(
            f"text {shown} does not exist: give a file, or owner/name[:config[:split]] for a data set of the Hub"
        )
    try:
        import datasets
    except ImportError as error:
        raise ScannerError(
            f"text {shown} is not a file, and data sets of the Hub need a library: pip install 'rmtscan[experiments]'"
        ) from error
    config = more[0] if more and more[0] else None
    split = more[1] if len(more) == 2 else "train"
    try:
        yield from datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # its dependencies raise exceptions of many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ScannerError(
            f"text {shown} is not a file, and cannot be read as a data set of the Hub: {printable(reason)[:200]}"
        ) from error
