"""A locked-down DuckDB connection to the committed files of a store, and a check that a statement only reads.

Views are made when a statement needs them, so that a question about scans neither lists nor opens the files of other tables.
"""

import json
import math
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from scanner.errors import QueryError, ScannerError, StoreError
from scanner.rmt.metric_set import FAILURE
from scanner.store.checksums import is_safe_id
from scanner.store.files import StoreFiles, foreign_error
from scanner.store.groups import GROUPED, NOTICE, Catalog, catalog, empty, is_group
from scanner.store.remote import RemoteFiles
from scanner.store.tables import SCHEMAS, TABLES, complete, listed_tables, metric_columns, tables_of, views

_SQL = Path(__file__).resolve().parent / "sql"
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_NO_EFFECT = (
    "only one SELECT statement can be run (WITH, FROM, VALUES, DESCRIBE, SUMMARIZE and SHOW TABLES are allowed, too)"
)

#: Seconds after which a query that ignored an interruption, because it had not begun, is interrupted again.
_AGAIN_SECONDS = 0.05
#: Seconds after which Ctrl-C is noticed at the latest.
_SIGNAL_SECONDS = 0.2
#: Rows of scans that are read at the same time from an object store, where latency dominates.
_READERS = 16

#: Parts of the database, and those that each is made from. The others are tables of the store, made from their files.
_NEEDS: dict[str, tuple[str, ...]] = {
    "failures": ("scans",),
    "all_matrices": ("scans",),
    "all_vectors": ("scans",),
    "superseded": ("scans",),
    "matrices": ("superseded",),
    "vectors": ("superseded",),
    "compared": ("scans", "comparisons"),
    **{f"all_{table}": ("comparisons",) for table in tables_of("comparisons")},
    **{table: ("compared", f"all_{table}") for table in tables_of("comparisons")},
    "activations": ("overlaps", "experiments"),
    "ablation_points": ("ablations", "experiments"),
    "scanned_deciles": ("ablation_points", "vectors"),
    "damage": ("ablation_points", "baselines"),
    "random_sets": ("ablations",),
    "night_scans": ("scans", "releases"),
    "matrices_by_sigma": ("scans", "matrices", "vectors"),
}
#: Relations and macros with other names than the part that they are in.
_PART_OF = {
    "counts": "scans",
    "chosen_scans": "scans",
    "not_superseded": "superseded",
    "superseded_counts": "superseded",
    **dict.fromkeys(
        "comparing compared_again model_pairs superseded_pairs chosen_comparisons chosen_results".split(), "compared"
    ),
    **{f"chosen_{table}": table for table in tables_of("comparisons")},
    "chosen_activations": "activations",
    "chosen_overlaps": "activations",
}
#: Relations that list others, so that all have to be there.
_ABOUT_ALL = ("duckdb_", "pg_", "pragma_", "sqlite_", "information_schema", "query")

Params = Mapping[str, object] | Sequence[object] | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The committed results of one table at one moment."""

    own: tuple[tuple[str, str], ...]
    """Names of the files that hold one result each, with a text that changes when the file is replaced."""
    catalog: Catalog

    @property
    def version(self) -> object:
        """A value that changes with the results."""
        return self.own, self.catalog.files

    @property
    def names(self) -> list[str]:
        """All results, sorted."""
        return sorted({*(name for name, _ in self.own), *self.catalog.group_of})


def listing(files: StoreFiles, table: str) -> Listing:
    """List the committed results of a table of `listed_tables()`.

    Raises:
        StoreError: the store cannot be read.
    """
    # In this order: what is moved into a group between the two is then found in both or in the group.
    own = [(name, version) for name, version in files.versions(table) if name != NOTICE and not is_group(name)]
    return Listing(own=tuple(own), catalog=catalog(files, table) if table in GROUPED else empty("scans"))


def parts() -> frozenset[str]:
    """Return the names of all parts of the database."""
    return frozenset({*listed_tables(), *views(), *_NEEDS})


def closure(wanted: Iterable[str]) -> list[str]:
    """Return these parts and those that they are made from, in the order in which they can be made."""
    found: dict[str, None] = {}

    def add(part: str) -> None:
        for needed in _NEEDS.get(part, ()):
            add(needed)
        found[part] = None

    for part in sorted(wanted):
        add(part)
    return [*found]


class Database:
    """An in-memory database with views over the files of a store, which can read nothing else."""

    def __init__(self, files: StoreFiles, chosen: Mapping[str, Collection[str]] | None = None) -> None:
        """Connect.

        Args:
            files: the files of the store.
            chosen: ids of the scans and comparisons that the views have, by table; of tables that are not named, all.

        Raises:
            StoreError: the database cannot be opened.
        """
        self.listings: dict[str, Listing] = {}
        """The results that it was made from, by table."""
        self.left_out: frozenset[tuple[str, str]] = frozenset()
        """Results that it does not have, because they are damaged: table and id."""
        self._files = files
        self._chosen = {table: frozenset(ids) for table, ids in (chosen or {}).items()}
        self._made: set[str] = set()
        self._mixed = False  # whether scans of one revision computed different metrics
        # DuckDB creates this folder when memory runs out, and removes it with the connection.
        spill = Path(tempfile.gettempdir()) / f"rmtscan-{uuid.uuid4().hex}"
        self.connection = duckdb.connect(":memory:", config={"temp_directory": str(spill)})
        with self._explained():
            if not files.local:
                self.connection.register_filesystem(RemoteFiles(files))
            # In a notebook without ipywidgets it is off, and DuckDB refuses to change it, also to what it is.
            [(draws,)] = self.connection.execute(_statements("draws_progress")).fetchall()
            for name in (
                *(["no_progress"] if draws else []),
                "session",
                "keys",
                "vocabulary",
                "measures",
                "statistics",
            ):
                self._run(name)
            for table, schema in SCHEMAS.items():
                self.connection.register("empty", schema.empty_table())
                self._run("empty", table=table)
                self.connection.unregister("empty")
            # DuckDB compares paths as written and as found, hence the name of the folder as a pattern, too.
            self._run("allow", {"folders": [files.url, files.for_duckdb("")]})
            self._run("lock")

    def close(self) -> None:
        """Release memory and threads."""
        self.connection.close()

    def needed(self, text: str) -> frozenset[str]:
        """Return the parts that a statement needs. If it cannot be told, these are all."""
        try:
            [(parsed,)] = self.connection.execute(_statements("parse"), {"statement": text}).fetchall()
        except duckdb.Error:
            return parts()
        tree = json.loads(parsed)
        names = None if tree["error"] else _relations_in(tree)
        return parts() if names is None else frozenset(_PART_OF.get(name, name) for name in names) & parts()

    @staticmethod
    def tables_for(wanted: Iterable[str]) -> list[str]:
        """Return the tables that have to be in `listings` for these parts."""
        return [part for part in closure(wanted) if part in listed_tables()]

    def prepare(self, wanted: Iterable[str]) -> None:
        """Make parts of the database that are not there yet; their tables are in `listings`.

        Raises:
            StoreError: a committed file is missing or damaged.
        """
        with self._explained():
            for part in closure(wanted):
                if part not in self._made:
                    self._make(part)
                    self._made.add(part)

    def _make(self, part: str) -> None:
        if part == "scans":
            self._make_scans()
        elif part == "comparisons":
            self._committed("comparisons")
            self._run("committed")
        elif part in ("matrices", "vectors"):
            self._make_newest(part)
        elif part == "superseded":
            self._make_superseded()
        elif part == "failures":
            self._relation("failures", "failures", [scan_id for scan_id, _, _, failed, _ in self._scans if failed])
        elif part in ("all_matrices", "all_vectors"):
            self._relation(part, part.removeprefix("all_"), self._with_rows(part.removeprefix("all_")))
        elif part == "compared":
            self._run("comparisons")
            again = [pair_id for (pair_id,) in self.connection.sql("from files.compared_again").fetchall()]
            self._check_names("comparisons", again)
            self._relation("files.recompared", "pairs", again)
            self._run("superseded_pairs")
            self._run("chosen_comparisons")
        elif part.startswith("all_"):
            self._relation(part, part.removeprefix("all_"), self._names("comparisons"))
        elif part in tables_of("comparisons"):
            self._run(f"newest_{part}")
        elif part in TABLES:
            self._check_names(part, [name for name, _ in self.listings[part].own])
            self._relation(part, part, self._names(part))
        else:
            self._run(part)

    def _make_scans(self) -> None:
        self._committed("scans")
        self._run("scans")
        stored, declared = (self.connection.table(name).types for name in ("scans", "files.empty_scans"))
        if stored != declared:
            raise StoreError(
                f"store {self._files.url!r} cannot be read: a file of table 'scans' has columns of other types"
            )
        self._scans = self.connection.sql("from files.counts").fetchall()
        self._check_names("scans", [row[0] for row in self._scans])

    def _with_rows(self, table: str) -> list[str]:
        """Return the scans with rows of `matrices` or `vectors`."""
        return [row[0] for row in self._scans if row[1] and (table == "matrices" or row[2])]

    def _make_superseded(self) -> None:
        # Only models and revisions with more than one scan can have superseded results.
        again = [scan_id for scan_id, matrices, _, _, again in self._scans if matrices and again]
        self._relation("files.rescanned", "matrices", again)
        self._run("superseded")
        self._make_metric_sources()
        superseded = dict(self.connection.sql("from files.superseded_counts").fetchall())
        self._whole = {row[0] for row in self._scans} - superseded.keys()
        self._partly = {row[0] for row in self._scans if 0 < superseded.get(row[0], 0) < row[1]}
        self._run("newest")

    def _make_newest(self, table: str) -> None:
        names = self._with_rows(table)
        self._relation(f"files.whole_{table}", table, [name for name in names if name in self._whole])
        self._relation(f"files.partly_{table}", table, [name for name in names if name in self._partly])
        columns = [*metric_columns("matrix"), FAILURE] if table == "matrices" else [*metric_columns("vector")]
        if not self._mixed:
            self._run(f"newest_{table}")
            return
        if table == "vectors":
            sources = self.connection.sql("from files.metric_source_names").fetchall()
            self._relation("files.metric_vectors", "vectors", [source for (source,) in sources])
        replaced = ", ".join(
            f"case when known.tensor is null then plain.{c} else known.{c} end as {c}" for c in columns
        )
        self._run(f"newest_{table}_mixed", replaced=replaced)

    def _make_metric_sources(self) -> None:
        """Find out whether scans of one revision computed different metrics, and from which each column comes then."""
        self._run("metric_sets")
        self._mixed = bool(self.connection.sql("from files.mixed_metrics").limit(1).fetchall())
        if not self._mixed:
            return
        values = ", ".join(
            f"arg_max_null(rescanned.{column}, made.finished) filter (where list_contains(made.names, '{name}')) as {column}"
            for column, name in metric_columns("matrix").items()
        )
        values += f", arg_max_null(rescanned.{FAILURE}, made.finished) filter (where made.names != []) as {FAILURE}"
        names = [*dict.fromkeys(metric_columns("vector").values())]
        self._run("metric_values", values=values, vector_names=str(names))

    def _names(self, table: str) -> list[str]:
        return [name for name in self.listings[table].names if self._has(table, name)]

    def _has(self, table: str, name: str) -> bool:
        """Whether a committed result is one of those that were chosen, and whole."""
        return (table, name) not in self.left_out and (table not in self._chosen or name in self._chosen[table])

    def _committed(self, table: str) -> None:
        """Make `files.<table>`: the rows that commit results, from their files and from catalogs."""
        found = self.listings[table]
        own = [name for name, _ in found.own if self._has(table, name)]
        self._check_names(table, own)
        grouped = {*self._names(table)} - {name for name, _ in found.own}
        tables = [row for name in sorted(grouped) if (row := found.catalog.row(name)) is not None]
        if not self._files.local:
            tables += self._rows_of(table, own)
            own = []
        relations = [f"files.own_{table}"]
        self._files_view(relations[0], table, [f"{table}/{name}.parquet" for name in own])
        if tables:
            self.connection.register("rows", pa.concat_tables(tables))
            self._run("rows", quoted=_quoted(f"files.read_{table}"))
            self.connection.unregister("rows")
            relations.append(f"files.read_{table}")
        self._several(f"files.{table}", table, relations)

    def _rows_of(self, table: str, names: Sequence[str]) -> list[pa.Table]:
        def read(name: str) -> pa.Table:
            row = self._files.read(f"{table}/{name}.parquet")
            if row is None:
                raise StoreError(f"{self._files.full(f'{table}/{name}.parquet')!r} is missing")
            try:
                return complete(table, row)
            except (pa.ArrowException, ValueError, TypeError):
                raise StoreError(
                    f"store {self._files.url!r} cannot be read: a file of table {table!r} has columns of other types"
                ) from None

        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(read, names))

    def _relation(self, view: str, table: str, names: Sequence[str]) -> None:
        """Make a view of the rows of some results, in files of their own or in groups."""
        commits = TABLES[table].listed_by or table
        found = self.listings[commits]
        own = {name for name, _ in found.own}
        paths = [f"{table}/{name}.parquet" for name in names if name in own]
        wanted: dict[str, list[str]] = {}
        for name in names:
            if name not in own:
                wanted.setdefault(found.catalog.group_of[name], []).append(name)
        partly: list[tuple[str, list[str]]] = []
        for name, results in sorted(wanted.items()):
            group = found.catalog.groups[name]
            path = group.path(table)
            if path is None:
                raise StoreError(f"store {self._files.url!r} cannot be read: group {name!r} has no rows of {table!r}")
            if group.dead or len(results) < len(found.catalog.live(name)):
                partly.append((path, results))
            else:
                paths.append(path)
        if not partly:
            self._files_view(view, table, paths)
            return
        relations = [f"files.{view.removeprefix('files.')} {index}" for index in range(len(partly) + 1)]
        self._files_view(relations[0], table, paths)
        for relation, (path, results) in zip(relations[1:], partly, strict=True):
            self._files.check_regular(path)
            self._run("paths", {"paths": [self._files.for_duckdb(path)]}, view=relation)
            self._run("ids", {"ids": results}, view=relation)
            self._run("group", view=relation, quoted=_quoted(relation), id_column=GROUPED[commits])
        self._several(view, table, relations)

    def _files_view(self, view: str, table: str, paths: Sequence[str]) -> None:
        for path in paths:
            self._files.check_regular(path)  # DuckDB would wait for a pipe
        # read_parquet needs at least one file: without files, the view is the typed empty table alone.
        self._run("paths", {"paths": [self._files.for_duckdb(path) for path in paths]}, view=view)
        self._run("files" if paths else "no_files", view=view, quoted=_quoted(view), table=table)

    def _several(self, view: str, table: str, relations: Sequence[str]) -> None:
        more = "".join(_statements("and", quoted=_quoted(relation)).rstrip() for relation in relations)
        self._run("several", quoted=_quoted(view), table=table, relations=more)

    def _check_names(self, table: str, names: Iterable[object]) -> None:
        """Refuse ids that are no names of files: a store may come from anybody, and ids in its rows become paths.

        Raises:
            StoreError: an id has other characters than rmtscan uses, or its row is in the file of another id.
        """
        listed = {*self.listings[table].names}
        for name in names:
            if not is_safe_id(name) or name not in listed:
                raise StoreError(
                    f"store {self._files.url!r} cannot be read: a file of table {table!r} has the id {str(name)[:80]!r}"
                )

    def _run(self, statement: str, params: Params = None, **names: str) -> None:
        self.connection.execute(_statements(statement, **names), params)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ScannerError:
            raise
        except duckdb.Error as error:
            raise StoreError(f"store {self._files.url!r} cannot be read: {one_line(error)}") from error
        except Exception as error:
            found = foreign_error(self._files.url, error)
            if found is None:
                raise
            raise found from error


def _quoted(relation: str) -> str:
    """Quote a name, with that of its schema: `overlaps` is a keyword of SQL."""
    schema, dot, name = relation.rpartition(".")
    return f'{schema}{dot}"{name}"'


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
        # `error(...)` in a query says what is wrong in words of its own; DuckDB adds this.
        raise QueryError(one_line(error).removeprefix("Invalid Input Error: ")) from error
    except ScannerError:
        raise
    except Exception as error:  # of the package that reads the object store
        found = foreign_error("", error)
        if found is None:
            raise
        raise found from error


def _interruptible(
    connection: duckdb.DuckDBPyConnection, run: Callable[[], pa.Table], timeout: float | None
) -> pa.Table:
    """Run a query in a thread: in the main thread, Python could not handle Ctrl-C before the query ends.

    Raises:
        TimeoutError: the query was interrupted after `timeout` seconds.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rmtscan-query") as thread:
        answer = thread.submit(run)
        ends = math.inf if timeout is None else time.monotonic() + timeout
        try:
            # In steps: a signal that the system delivers to another thread does not end the wait of this one.
            while not wait([answer], max(0.0, min(_SIGNAL_SECONDS, ends - time.monotonic()))).done:
                if time.monotonic() >= ends:
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


def _relations_in(tree: object) -> set[str] | None:
    """Return the names of relations and macros in a parsed statement, in lower case, and its texts; None if it may need any."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        if not isinstance(node, dict):
            continue
        waiting += node.values()
        if node.get("type") == "SHOW_REF" and node.get("query") is None:
            return None
        named = [node.get(key) for key in ("table_name", "function_name", "schema_name")]
        names = {name.lower() for name in named if isinstance(name, str)}
        if any(name.startswith(_ABOUT_ALL) and name != "query_table" for name in names):
            return None
        names |= {text.lower()} if isinstance(text := node.get("text"), str) else set()
        if node.get("function_name") == "query_table" and not _is_constant(node.get("arguments")):
            return None
        found |= names
    return found


def _is_constant(arguments: object) -> bool:
    """Whether the arguments of a function are literals."""
    listed = arguments if isinstance(arguments, list) else []
    return all(isinstance(one, dict) and one.get("expression", {}).get("class") == "CONSTANT" for one in listed)
