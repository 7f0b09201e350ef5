"""A locked-down DuckDB connection to the committed files of a store, and a check that a statement only reads."""

import json
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import duckdb
import pyarrow as pa

from scanner.errors import QueryError, StoreError
from scanner.store.checksums import is_safe_id
from scanner.store.files import StoreFiles
from scanner.store.tables import SCHEMAS, listed_tables, tables_of

_SQL = Path(__file__).resolve().parent / "sql"
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_NO_EFFECT = (
    "only one SELECT statement can be run (WITH, FROM, VALUES, DESCRIBE, SUMMARIZE and SHOW TABLES are allowed, too)"
)

#: Seconds after which a query that ignored an interruption, because it had not begun, is interrupted again.
_AGAIN_SECONDS = 0.05

Params = Mapping[str, object] | Sequence[object] | None


def connect(files: StoreFiles, names: Mapping[str, Sequence[str]]) -> duckdb.DuckDBPyConnection:
    """Open an in-memory database with the views, which can read nothing but the store.

    Args:
        files: the store.
        names: files of each table of `listed_tables()`.

    Raises:
        StoreError: a committed file is missing or damaged.
    """
    # DuckDB creates this folder when memory runs out, and removes it with the connection.
    spill = Path(tempfile.gettempdir()) / f"rmtscan-{uuid.uuid4().hex}"
    connection = duckdb.connect(":memory:", config={"temp_directory": str(spill)})
    try:
        if not files.local:
            connection.register_filesystem(files.fs)
        connection.execute(_statements("session"))
        connection.execute(_statements("keys"))
        _make_relations(connection, files, names)
        # DuckDB compares paths as written and as found, hence the name of the folder as a pattern, too.
        connection.execute(_statements("allow"), {"folders": [files.url, files.for_duckdb("")]})
        connection.execute(_statements("lock"))
    except StoreError:
        connection.close()
        raise
    except duckdb.Error as error:
        connection.close()
        raise StoreError(f"store {files.url!r} cannot be read: {one_line(error)}") from error
    return connection


def read(
    connection: duckdb.DuckDBPyConnection, text: str, params: Params = None, *, timeout: float | None = None
) -> pa.Table:
    """Run one statement, for at most `timeout` seconds; None: without a limit.

    Raises:
        QueryError: DuckDB cannot run it (the message is that of DuckDB, on one line), the statement or a value is not UTF-8, or the
            time is over.
    """
    values = params.values() if isinstance(params, Mapping) else params or ()
    _refuse_broken_text(text, *(value for value in values if isinstance(value, str)))

    def run() -> pa.Table:
        relation = connection.sql(text, params=params or None)
        if relation is None:
            raise QueryError(_NO_EFFECT)
        return relation.to_arrow_table()

    try:
        return _interruptible(connection, run, timeout)
    except TimeoutError:
        raise QueryError(
            f"the statement has not ended within {timeout:g} s: select fewer rows, or raise `timeout`"
        ) from None
    except duckdb.Error as error:
        raise QueryError(one_line(error)) from error


def _interruptible(
    connection: duckdb.DuckDBPyConnection, run: Callable[[], pa.Table], timeout: float | None
) -> pa.Table:
    """Run a query in a thread: in the main thread, Python could not handle Ctrl-C before the query ends.

    Raises:
        TimeoutError: the query was interrupted after `timeout` seconds.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rmtscan-query") as thread:
        answer = thread.submit(run)
        try:
            if not wait([answer], timeout).done:
                raise TimeoutError
        finally:
            while not answer.done():
                connection.interrupt()
                wait([answer], _AGAIN_SECONDS)
        return answer.result()


def refuse_all_but_select(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Check that the text is one statement that only reads.

    DuckDB counts a SELECT whose WITH clause contains INSERT, or COPY into a file, as a SELECT. So every node of the parsed
    statement must be of a kind that reads.

    Raises:
        QueryError: it is not.
    """
    _refuse_broken_text(text)
    try:
        statements = connection.extract_statements(text)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError(_NO_EFFECT)
        [(parsed,)] = connection.execute(_statements("parse"), {"statement": text}).fetchall()
    except duckdb.Error as error:
        raise QueryError(one_line(error)) from error
    tree = json.loads(parsed)
    if tree["error"] or not _node_types(tree) <= _READING_NODES:
        raise QueryError(_NO_EFFECT)


def _refuse_broken_text(*texts: str) -> None:
    """Refuse lone surrogates, which stand for bytes of a command line that are not UTF-8, and which DuckDB does not accept."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise QueryError(f"not UTF-8 text: {text[: error.start]!r} is followed by a broken character") from None


def one_line(error: Exception) -> str:
    """Return the message of DuckDB without the quoted statement, on one line and without control characters."""
    words = " ".join(str(error).split("\n\nLINE ")[0].split())
    return "".join(character if character.isprintable() else "?" for character in words)


def _make_relations(
    connection: duckdb.DuckDBPyConnection, files: StoreFiles, listed: Mapping[str, Sequence[str]]
) -> None:
    for table, schema in SCHEMAS.items():
        connection.register("empty", schema.empty_table())
        connection.execute(_statements("empty", table=table))
        connection.unregister("empty")

    for table, found in listed.items():
        _check_names(files, table, found, found)

    def relation(view: str, table: str, names: Sequence[str]) -> None:
        for name in names:
            files.check_regular(f"{table}/{name}.parquet")  # DuckDB would wait for a pipe
        paths = [files.for_duckdb(f"{table}/{name}.parquet") for name in names]
        # read_parquet needs at least one file: without files, the view is the typed empty table alone.
        connection.execute(_statements("paths", view=view), {"paths": paths})
        quoted = ".".join(f'"{part}"' for part in view.split("."))  # `overlaps` is a keyword of SQL
        connection.execute(_statements("files" if paths else "no_files", view=view, quoted=quoted, table=table))

    relation("files.scans", "scans", listed["scans"])
    connection.execute(_statements("scans"))
    stored, declared = (connection.table(name).types for name in ("scans", "files.empty_scans"))
    if stored != declared:
        raise StoreError(f"store {files.url!r} cannot be read: a file of table 'scans' has columns of other types")
    scans = connection.sql("from files.counts").fetchall()
    _check_names(files, "scans", [row[0] for row in scans], listed["scans"])
    with_matrices = [scan_id for scan_id, matrices, _, _, _ in scans if matrices]
    with_vectors = {scan_id for scan_id, _, vectors, _, _ in scans if vectors}
    relation("all_matrices", "matrices", with_matrices)
    relation("all_vectors", "vectors", [name for name in with_matrices if name in with_vectors])
    relation("failures", "failures", [scan_id for scan_id, _, _, failed, _ in scans if failed])
    for table in tables_of("comparisons"):
        relation(f"all_{table}", table, listed["comparisons"])
    for table in listed_tables():
        if table != "scans":
            relation(table, table, listed[table])

    connection.execute(_statements("comparisons"))
    again = connection.sql("from files.compared_again").fetchall()
    _check_names(files, "comparisons", [pair_id for (pair_id,) in again], listed["comparisons"])
    relation("files.recompared", "pairs", [pair_id for (pair_id,) in again])
    connection.execute(_statements("superseded_pairs"))

    # Only models and revisions with more than one scan can have superseded results.
    relation("files.rescanned", "matrices", [scan_id for scan_id, matrices, _, _, again in scans if matrices and again])
    connection.execute(_statements("superseded"))
    superseded = dict(connection.sql("from files.superseded_counts").fetchall())
    whole = [name for name in with_matrices if name not in superseded]
    partly = [name for name, matrices, _, _, _ in scans if 0 < superseded.get(name, 0) < matrices]
    for table, names in (("matrices", {*with_matrices}), ("vectors", with_vectors)):
        relation(f"files.whole_{table}", table, [name for name in whole if name in names])
        relation(f"files.partly_{table}", table, [name for name in partly if name in names])
    connection.execute(_statements("views"))


def _check_names(files: StoreFiles, table: str, names: Sequence[object], listed: Sequence[str]) -> None:
    """Refuse ids that are no names of files: a store may come from anybody, and ids in its rows become paths.

    Raises:
        StoreError: an id has other characters than rmtscan uses, or its row is in the file of another id.
    """
    for name in names:
        if not is_safe_id(name) or name not in listed:
            raise StoreError(
                f"store {files.url!r} cannot be read: a file of table {table!r} has the id {str(name)[:80]!r}"
            )


def _statements(name: str, **names: str) -> str:
    """Return a file of `sql/`; only names that the code itself chooses are inserted, values are bound."""
    text = (_SQL / f"{name}.sql").read_text("utf-8")
    for placeholder, value in names.items():
        text = text.replace(f"{{{placeholder}}}", value)
    return text


def _node_types(tree: object) -> set[str]:
    """Return the kinds of query nodes in a parsed statement, at any depth."""
    if isinstance(tree, list):
        return {kind for branch in tree for kind in _node_types(branch)}
    if not isinstance(tree, dict):
        return set()
    kinds = {kind for branch in tree.values() for kind in _node_types(branch)}
    own = tree.get("type")
    return kinds | {own} if isinstance(own, str) and own.endswith("_NODE") else kinds
