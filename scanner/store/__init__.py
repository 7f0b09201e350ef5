"""Storage of results: Parquet files under one URL, committed one scan at a time, and DuckDB queries over them."""

from scanner.store.heartbeat import Heartbeat
from scanner.store.parts import finished_part
from scanner.store.queries import Query
from scanner.store.staging import ScanWriter, Unfinished
from scanner.store.store import Store, open_store
from scanner.store.tables import SCHEMA_VERSION, SCHEMAS

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
