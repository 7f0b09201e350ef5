"""Publishing a store as a dataset of the Hugging Face Hub: Parquet files and a card, without paths of this machine.

The published folder has the folders of a store, so it is one, too. Only committed results are published, each with files of its
own, whether or not the store is compacted. rmtscan.json in the folder lists the files that were written, and what they were made
from: the next publication into the same folder writes only those that changed, and removes only those that left the store.
"""

import filecmp
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scanner.errors import StoreError
from scanner.store.checksums import (
    SEAL,
    FileRecord,
    record_in,
    records_as_json,
    records_in,
    sealed,
    unsealed_metadata,
)
from scanner.store.database import one_line
from scanner.store.files import StoreFiles
from scanner.store.groups import GROUPED, names_of, results, row_digest, row_of, rows_of
from scanner.store.publish_card import card
from scanner.store.row_groups import ROW_GROUP
from scanner.store.store import Store
from scanner.store.tables import SCHEMAS, TABLES, complete, described, json_object, tables_of
from scanner.store.transfer import metadata_of, write_rows
from scanner.store.verification import COMMITTING
from scanner.version import __version__

MANIFEST = "rmtscan.json"
CARD = "README.md"
DEFAULT_LICENSE = "cc-by-4.0"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")
_QUOTED = re.compile(r"(['\"])((?:file://)?(?:~?/|\.{1,2}/|[A-Za-z]:[\\/]|\\\\)[^'\"\n]*)\1")
_PATH = re.compile(
    r"(?<![\w/.\\~])(?:file://)?(?:~?/(?!/)|\.{1,2}/|[A-Za-z]:[\\/](?!/)|\\\\)(?:(?!\.\.)[^\s'\"<>|:;,()\[\]{}])+"
)
_LOCAL = re.compile(r"(?:file:|~|/|\.{1,2}[\\/]|[A-Za-z]:[\\/]|\\\\)")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One table of a publication."""

    table: str
    files: int
    rows: int
    bytes: int


def publish(
    store: Store,
    to: str | os.PathLike[str],
    *,
    name: str | None = None,
    license_id: str = DEFAULT_LICENSE,
    force: bool = False,
) -> list[Published]:
    """Write the committed results of a store into a folder, as a dataset for the Hub.

    If the folder is an earlier publication, unchanged files are kept, and files that are no longer in the store are removed.

    Args:
        store: the store to publish.
        to: the folder; created if it does not exist.
        name: name of the dataset on its card; None: derived from the models.
        license_id: identifier of a license as the Hub writes it.
        force: write into a folder that has other content, which is kept.

    Returns:
        The published tables, in the order of the documentation.

    Raises:
        StoreError: nothing is committed, or the folder cannot be used.
    """
    if _LICENSE.fullmatch(license_id) is None:
        raise StoreError(
            f"`license_id` {license_id!r} is not a license identifier of the Hub: use one such as cc-by-4.0, mit or other"
        )
    source = StoreFiles(store.url)
    damaged = [found for found in store.verify() if found.state == "damaged"]
    if damaged:
        raise StoreError(
            f"{len(damaged)} files of store {store.url!r} are missing or damaged, so nothing is published: "
            f"{damaged[0].file} {damaged[0].problem}; {damaged[0].remedy} (rmtscan verify lists all)"
        )
    chosen = _committed_files(store, source)
    target = _usable_folder(os.fspath(to), source, force=force)
    scans = _scans(source, chosen["scans"])
    with _explained(target):
        before = _earlier_files(target)
        made = _made(source, chosen)
        same = _unchanged(target, made)
        paths = sorted(f"{table}/{file}.parquet" for table, files in chosen.items() for file in files)
        # Written first, so that an interrupted publication can be resumed.
        _replace_text(target / MANIFEST, _manifest({*before, *paths}, made, same))
        records: dict[str, FileRecord] = {**same}
        # Rows that commit others come last: they hold the checksums of the published files.
        last = sorted(chosen, key=lambda table: table in COMMITTING)
        of_table = {table: _publish_table(source, target, table, chosen[table], records) for table in last}
        published = [of_table[table] for table in chosen]
        for path in sorted({*before} - {*paths}):
            (target / path).unlink(missing_ok=True)
            with _ignored():
                (target / path).parent.rmdir()
        counts = {found.table: found.rows for found in published}
        _replace_text(target / CARD, card(scans, counts, name=name, license_id=license_id))
        _replace_text(target / MANIFEST, _manifest(paths, made, records))
    return published


def without_local_paths(text: str) -> str:
    """Shorten every absolute or relative path of a local file in a text to its last part; URLs are kept."""
    text = _QUOTED.sub(lambda match: f"{match[1]}{_last_part(match[2])}{match[1]}", text)
    return _PATH.sub(lambda match: _last_part(match[0]), text)


def _last_part(path: str) -> str:
    return re.split(r"[\\/]+", path.rstrip("\\/"))[-1]


def _committed_files(store: Store, source: StoreFiles) -> dict[str, list[str]]:
    """Return the committed files of every table that has rows, without suffix."""
    rows = [row for scan_id in store.committed() if (row := store.scan_row(scan_id)) is not None]
    if not rows:
        raise StoreError(f"store {store.url!r} has no finished scan: there is nothing to publish")
    chosen = {"scans": [str(row["scan_id"]) for row in rows]}
    for table in tables_of("scans"):
        chosen[table] = [str(row["scan_id"]) for row in rows if row[TABLES[table].counted_by]]
    for table in SCHEMAS:
        if table not in chosen:
            commits = TABLES[table].listed_by or table
            chosen[table] = results(source, commits) if commits in GROUPED else names_of(source, table)
    return {table: chosen[table] for table in SCHEMAS if chosen[table]}


def _scans(source: StoreFiles, names: list[str]) -> list[dict[str, object]]:
    known = {*names}
    rows = [row for row in _redacted("scans", rows_of(source, "scans")).to_pylist() if row["scan_id"] in known]
    return sorted(rows, key=lambda row: (row["model"], str(row.get("finished_at")), row["scan_id"]))


def _usable_folder(to: str, source: StoreFiles, *, force: bool) -> Path:
    if not to.strip() or "\0" in to or "://" in to:
        raise StoreError(
            f"`to` {to!r} is not a local folder: publish into one, then 'hf upload ORG/NAME FOLDER . --repo-type dataset'"
        )
    target = Path(os.path.abspath(Path(to).expanduser()))  # noqa: PTH100 (resolve() would show where a link leads)
    if source.local:
        inside, store = target.resolve(), Path(source.root).resolve()
        if inside == store or store in inside.parents or inside in store.parents:
            raise StoreError(f"`to` {to!r} and the store {source.url!r} contain one another: choose another folder")
    if target.exists() and not target.is_dir():
        raise StoreError(f"`to` {to!r} is a file: name a folder")
    with _explained(target):
        others = sorted(path.name for path in target.iterdir()) if target.exists() else []
        others = [name for name in others if name not in {".git", ".gitattributes"}]
        if others and MANIFEST not in others and not force:
            raise StoreError(
                f"`to` {to!r} contains {others[0]!r} and is not an earlier publication: choose another folder, or use `force` to "
                "keep its content and write beside it"
            )
        target.mkdir(parents=True, exist_ok=True)
        links = [table for table in SCHEMAS if (target / table).is_symlink()]
        if links:
            raise StoreError(
                f"{str(target / links[0])!r} is a symbolic link, which leads out of the publication: remove it"
            )
    return target


def _earlier_files(target: Path) -> set[str]:
    """Return the files that an earlier publication wrote: paths of tables inside the folder, and no others."""
    try:
        files = json.loads((target / MANIFEST).read_text("utf-8"))["files"]
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError):
        return set()
    known = re.compile(rf"(?:{'|'.join(SCHEMAS)})/[A-Za-z0-9][A-Za-z0-9._-]*\.parquet")
    return {path for path in files if isinstance(path, str) and known.fullmatch(path)}


def _manifest(paths: Collection[str], made: Mapping[str, str], records: Mapping[str, FileRecord]) -> str:
    sources = {
        path: {"from": made[path], **asdict(records[path])}
        for path in sorted(made)
        if path in records and path in paths
    }
    written = {"written_by": f"rmtscan {__version__}", "files": sorted(paths), "sources": sources}
    return json.dumps(written, indent=1) + "\n"


def _made(source: StoreFiles, chosen: Mapping[str, list[str]]) -> dict[str, str]:
    """Return what the files of scans and comparisons are made from: the row that commits them, and this version.

    Compaction does not change it. Rows themselves are small, and always made again.
    """
    found = {}
    for commits in GROUPED:
        for name in chosen.get(commits, ()):
            digest = row_digest(source, commits, name)
            for table in tables_of(commits):
                found[f"{table}/{name}.parquet"] = f"{digest} {__version__}"
    return found


def _unchanged(target: Path, made: Mapping[str, str]) -> dict[str, FileRecord]:
    """Return the records of the published files that would be written again as they are."""
    try:
        sources = json.loads((target / MANIFEST).read_text("utf-8"))["sources"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    found = {}
    for path, digest in made.items():
        about: Any = sources.get(path) if isinstance(sources, dict) else None
        try:
            record = record_in(about)
            if about["from"] == digest and _record_of(target / path, record.rows) == record:
                found[path] = record
        except (ValueError, KeyError, TypeError, OSError):
            continue
    return found


def _record_of(path: Path, rows: int) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(bytes=path.stat().st_size, rows=rows, sha256=digest)


def _publish_table(
    source: StoreFiles, target: Path, table: str, names: list[str], records: dict[str, FileRecord]
) -> Published:
    (target / table).mkdir(exist_ok=True)
    rows = size = 0
    for name in names:
        path = target / table / f"{name}.parquet"
        record = records.get(f"{table}/{name}.parquet")
        if record is None:
            record = _record_of(path, _publish_file(source, f"{table}/{name}.parquet", path, table, records))
        rows += record.rows
        size += record.bytes
        records[f"{table}/{name}.parquet"] = record
    return Published(table=table, files=len(names), rows=rows, bytes=size)


def _publish_file(source: StoreFiles, path: str, to: Path, table: str, records: Mapping[str, FileRecord]) -> int:
    """Copy one file unchanged, or by row groups if a column is missing or paths are removed; returns the number of rows."""
    name = path.partition("/")[2].removesuffix(".parquet")
    commits = TABLES[table].listed_by or table
    if commits in GROUPED and not source.is_file(f"{commits}/{name}.parquet"):
        return _publish_grouped(source, table, name, to, records)
    try:
        with source.fs.open(source.full(path), "rb") as file:
            parquet = pq.ParquetFile(file)
            found = parquet.schema_arrow.metadata or {}
            metadata = {key.decode(): value.decode() for key, value in found.items()}
            clean = {key: without_local_paths(value) for key, value in metadata.items()}
            may_hold_paths = clean != metadata or bool(TABLES[table].paths or TABLES[table].published)
            clean.pop(SEAL, None)
            as_it_is = (
                table not in COMMITTING
                and parquet.schema_arrow.remove_metadata().equals(SCHEMAS[table])
                and not may_hold_paths
            )
            with _replacing(to) as temporary:
                if as_it_is:
                    file.seek(0)
                    with temporary.open("wb") as out:
                        shutil.copyfileobj(file, out, 1 << 20)
                else:
                    _rewrite(parquet, temporary, table, clean, records)
            return int(parquet.metadata.num_rows)
    except FileNotFoundError as error:
        raise StoreError(f"{source.full(path)!r} is missing in the store: scan again with `force`") from error
    except pa.ArrowException as error:
        raise StoreError(f"{source.full(path)!r} is damaged ({one_line(error)}): remove it and scan again") from error


def _publish_grouped(source: StoreFiles, table: str, name: str, to: Path, records: Mapping[str, FileRecord]) -> int:
    """Write a file of its own for a result in a group; returns the number of rows."""
    commits = TABLES[table].listed_by or table
    row = row_of(source, commits, name)
    if row is None:
        raise StoreError(f"{name!r} was removed from store {source.url!r} while it was published: publish again")
    found = metadata_of(complete(commits, row).to_pylist()[0])
    metadata = {key: without_local_paths(value) for key, value in found.items()}
    with _replacing(to) as temporary:
        if table != commits:
            with temporary.open("wb") as file:
                return write_rows(source, table, name, file, metadata, lambda rows: _redacted(table, rows))
        rows = _with_records(_redacted(table, row), COMMITTING[table], records)
        pq.write_table(rows.replace_schema_metadata({**metadata, **unsealed_metadata()}), temporary, compression="zstd")
        temporary.write_bytes(sealed(temporary.read_bytes()))
        return 1


def _rewrite(
    parquet: pq.ParquetFile, to: Path, table: str, metadata: dict[str, str], records: Mapping[str, FileRecord]
) -> None:
    small = not TABLES[table].listed_by
    schema = TABLES[table].described.with_metadata({**metadata, **(unsealed_metadata() if small else {})})
    with pq.ParquetWriter(to, schema, compression="zstd") as writer:
        for batch in parquet.iter_batches(batch_size=ROW_GROUP):
            rows = _redacted(table, pa.Table.from_batches([batch]))
            if table in COMMITTING:
                rows = _with_records(rows, COMMITTING[table], records)
            writer.write_table(rows, row_group_size=ROW_GROUP)
    if small:
        to.write_bytes(sealed(to.read_bytes()))


def _with_records(rows: pa.Table, id_column: str, records: Mapping[str, FileRecord]) -> pa.Table:
    """Return committing rows with the checksums of the published files, which differ where paths were removed."""
    texts = []
    for text, name in zip(rows["files"].to_pylist(), rows[id_column].to_pylist(), strict=True):
        paths = records_in(text)
        own = {path: records[path] for path in paths or {} if path in records}
        own |= {path: record for path, record in records.items() if path.partition("/")[2] == f"{name}.parquet"}
        texts.append(records_as_json(own))
    position = rows.column_names.index("files")
    return rows.set_column(position, rows.schema.field("files"), pa.array(texts, pa.string()))


def _redacted(table: str, rows: pa.Table) -> pa.Table:
    """Return the rows in the schema of the table, with missing columns as null, and without paths of this machine."""
    rows = complete(table, rows)
    models = rows["model"].to_pylist() if "model" in rows.column_names else [None] * rows.num_rows
    for name, keys in TABLES[table].published.items():
        values = [_with_keys(value, keys) for value in rows[name].to_pylist()]
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
    for name in TABLES[table].paths:
        clean = _source if name == "source" else _text
        values = [clean(value, model) for value, model in zip(rows[name].to_pylist(), models, strict=True)]
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
    return described(table, rows)


def _text(value: str | None, model: str | None) -> str | None:
    return None if value is None else without_local_paths(value)


def _with_keys(value: str | None, keys: Collection[str]) -> str | None:
    if value is None:
        return None
    return json.dumps({key: one for key, one in json_object(value).items() if key in keys}, sort_keys=True)


def _source(value: str | None, model: str | None) -> str | None:
    """Return the source of a checkpoint if it is a URL, and the name of the model if it is on this machine."""
    return model if value is not None and _LOCAL.match(value) else value


def _replace_text(path: Path, text: str) -> None:
    with _replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Open a file for writing that replaces `path` at the end, unless both are equal."""
    # A random name in a new folder of our own: nobody can have planted a link under it.
    folder = Path(tempfile.mkdtemp(prefix=".rmtscan-", dir=path.parent))
    temporary = folder / "new"
    try:
        yield temporary
        if path.is_symlink():
            path.unlink()
        if not (path.is_file() and filecmp.cmp(temporary, path, shallow=False)):
            temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot publish into {str(target)!r}: {error.strerror or error}") from error


@contextmanager
def _ignored() -> Iterator[None]:
    """Keep a folder that is not empty."""
    try:
        yield
    except OSError:
        return
