"""A store reduced to the scans of one model, so that questions about it do not open the files of hundreds of others."""

from __future__ import annotations

from collections.abc import Collection

from scanner.store import Store
from scanner.store.files import StoreFiles


class _Files(StoreFiles):
    """The files of a store, with some of its scans."""

    def __init__(self, url: str, scans: Collection[str]) -> None:
        super().__init__(url)
        self._scans = frozenset(scans)

    def versions(self, folder: str, suffix: str = ".parquet") -> list[tuple[str, str]]:
        """Return names and versions as the store does, of the chosen scans only."""
        found = super().versions(folder, suffix)
        return [one for one in found if folder != "scans" or one[0] in self._scans]


def narrowed(store: Store, scans: Collection[str]) -> Store:
    """Return the store with these scans only; scans in the groups of a compacted store stay, because they share their files."""
    return Store(_Files(store.url, scans))
