"""SHA-256 of local files that is known without reading them: of an earlier run, or from the names in a Hugging Face cache."""

import contextlib
import json
import os
import re
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from scanner.checkpoint.sources.versions import CLOCK_STEP

VARIABLE = "RMTSCAN_HASH_CACHE"
"""Environment variable with the path of the file of known hashes; `0`: nothing is kept, and nothing is looked up."""

SMALLEST_BYTES = 1_000_000
"""Smaller files are hashed again: this takes milliseconds."""

_MOST_FILES = 20_000
_MOST_BYTES = 64 << 20
_FORMAT = 1
# Seconds between two writes of the file while a command runs.
_WRITE_SECONDS = 5.0
# Some file systems count whole seconds, or two of them (FAT).
_COARSE_STEP = 2.0

_SHA256 = re.compile(r"[0-9a-f]{64}")
# The file by which huggingface_hub marks the folder of its cache with files that several models share.
SHARED_BLOBS_MARK = ".huggingface-shared-blobs"

#: Size, time of the last change, device, inode, time of the last change of the inode (nanoseconds).
_Stat = tuple[int, int, int, int, int]


def of_hub_cache(path: Path) -> str | None:
    """Return the SHA-256 of a file in a snapshot of a Hugging Face cache, which stores it under this name.

    The file is a link models--*/snapshots/COMMIT/... -> models--*/blobs/SHA256 (or into the folder with blobs that models share).
    Small files have the 40 digits of a git hash there instead, which is not a SHA-256.
    """
    if not path.is_symlink():
        return None
    target = path.resolve()
    if _SHA256.fullmatch(target.name) is None or target.parent.name != "blobs":
        return None
    for snapshots in path.parent.resolve().parents:
        repository = snapshots.parent
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            shared = repository.parent / "blobs"
            own = target.parent == repository / "blobs"
            return target.name if own or (target.parent == shared and (shared / SHARED_BLOBS_MARK).is_file()) else None
    return None


def known(path: Path, found: os.stat_result) -> str | None:
    """Return the SHA-256 that an earlier run found for this version of a file, or None.

    Args:
        path: the file.
        found: its state now.
    """
    kept = _kept()
    return None if kept is None or found.st_size < SMALLEST_BYTES else kept.get(str(path.resolve()), _stat(found))


def remember(path: Path, found: os.stat_result, sha256: str, *, began: int) -> None:
    """Keep the SHA-256 of a file for later runs, unless a write during the hashing could have gone unnoticed.

    Args:
        path: the file.
        found: its state before it was hashed, which is still the same.
        sha256: hexadecimal digits.
        began: when the hashing began (nanoseconds since the epoch): a file that was written less than a step of the clock
            before that could have been written again with the same time.
    """
    kept = _kept()
    if kept is None or found.st_size < SMALLEST_BYTES:
        return
    newest = max(found.st_mtime_ns, found.st_ctime_ns)
    coarse = found.st_ctime_ns % 1_000_000_000 == 0
    if began - newest > 1e9 * (_COARSE_STEP if coarse else CLOCK_STEP):
        kept.put(str(path.resolve()), _stat(found), sha256)


def flush() -> None:
    """Write what `remember` has not written yet."""
    kept = _kept()
    if kept is not None:
        kept.write()


def _stat(found: os.stat_result) -> _Stat:
    return (found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino, found.st_ctime_ns)


def _kept() -> "_HashFile | None":
    named = os.environ.get(VARIABLE, "")
    if named == "0":
        return None
    if named:
        return _hash_file(named)
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(folder):  # noqa: PTH117 (the specification ignores relative paths)
        folder = os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118 (may have no home)
    return _hash_file(os.path.join(folder, "rmtscan", "sha256.json"))  # noqa: PTH118


@cache
def _hash_file(path: str) -> "_HashFile":
    return _HashFile(Path(path))


class _HashFile:
    """A JSON file: path -> state and SHA-256. It is replaced as a whole; if it cannot be read or written, nothing is known.

    Thread-safe. Of two processes that write at the same moment, one may lose what the other adds, which is then hashed again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[_Stat, str]] | None = None
        self._added: dict[str, tuple[_Stat, str]] = {}
        self._written = time.monotonic()

    def get(self, path: str, found: _Stat) -> str | None:
        with self._lock:
            if self._entries is None:
                self._entries = self._read()
            entry = self._added.get(path) or self._entries.get(path)
        return entry[1] if entry is not None and entry[0] == found else None

    def put(self, path: str, found: _Stat, sha256: str) -> None:
        with self._lock:
            self._added[path] = (found, sha256)
            due = time.monotonic() - self._written >= _WRITE_SECONDS
        if due:
            self.write()

    def write(self) -> None:
        with self._lock:
            self._written = time.monotonic()
            if not self._added:
                return
            entries = self._read()
            for path, entry in self._added.items():
                entries.pop(path, None)
                entries[path] = entry  # last: the newest
            entries = dict(list(entries.items())[-_MOST_FILES:])
            with contextlib.suppress(OSError):  # a full or read-only home is no reason to fail
                self._replace(entries)
            self._entries, self._added = entries, {}

    def _replace(self, entries: dict[str, tuple[_Stat, str]]) -> None:
        content = {"format": _FORMAT, "files": {path: [*found, sha256] for path, (found, sha256) in entries.items()}}
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f"{self._path.name}.", dir=self._path.parent)
        try:
            with open(number, "w", encoding="ascii") as file:  # noqa: PTH123 (a descriptor)
                json.dump(content, file)
            os.replace(name, self._path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)  # noqa: PTH108
            raise

    def _read(self) -> dict[str, tuple[_Stat, str]]:
        try:
            if self._path.stat().st_size > _MOST_BYTES:
                return {}
            content = json.loads(self._path.read_bytes())
            if content["format"] != _FORMAT:
                return {}
            return {path: _entry(values) for path, values in content["files"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}


def _entry(values: Any) -> tuple[_Stat, str]:
    size, modified, device, inode, changed, sha256 = values
    found = (size, modified, device, inode, changed)
    if not all(type(number) is int for number in found) or _SHA256.fullmatch(sha256) is None:
        raise ValueError("not an entry")
    return found, sha256
