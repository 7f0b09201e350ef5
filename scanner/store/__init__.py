"""Where results live: Parquet files under one URL, committed a scan at a time, and DuckDB queries over them."""

from scanner.store.heartbeat import Heartbeat
from scanner.store.parts import finished_part
from scanner.store.queries import Query
from scanner.store.store import Store, Unfinished, open_store
from scanner.store.tables import SCHEMA_VERSION, SCHEMAS
from scanner.store.writer import ScanWriter

__all__ = [
    "SCHEMAS",
    "SCHEMA_VERSION",
    "Heartbeat",
    "Query",
    "ScanWriter",
    "Store",
    "Unfinished",
    "finished_part",
    "open_store",
]
