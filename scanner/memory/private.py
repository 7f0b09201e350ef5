"""Stores in the memory of this process, which queries, figures and reports read like any other store."""

from __future__ import annotations

import uuid

from scanner.store import Store, open_store


def private_store() -> Store:
    """Return a new, empty store in memory; `drop` frees it."""
    return open_store(f"memory://rmtscan-{uuid.uuid4().hex}", create=True)


def drop(store: Store) -> None:
    """Free a store of `private_store`."""
    store.close()
    store.files.remove_folder("")
