"""The files of a folder in any store that fsspec reaches: object stores, web servers, memory."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import fsspec
from fsspec.registry import known_implementations

from scanner.checkpoint.names import is_plain_name, printable
from scanner.checkpoint.sources.ranges import Sink
from scanner.checkpoint.sources.remote_files import RemoteFiles
from scanner.checkpoint.sources.retry import is_temporary, with_retries
from scanner.checkpoint.sources.versions import FileVersion, changed
from scanner.errors import CheckpointError, MissingError

# Bytes per request: larger blocks would be a second copy of a large tensor in memory.
_BLOCK_BYTES = 64 * 2**20

# The keys under which stores report a checksum of the contents, and the time of the last change.
_CHECKSUMS = ("etag", "md5hash", "md5", "content_md5", "content-md5", "crc32c", "checksum", "sha256", "digest")
_TIMES = ("generation", "mtime", "lastmodified", "last_modified", "last-modified", "modified", "updated", "created")


class FsspecFiles(RemoteFiles):
    """`Files` of a URL like `s3://bucket/folder/` (with `/` at its end) or `s3://bucket/folder/model.safetensors`.

    Requests are retried after temporary errors (a busy server, a dropped connection), as for the Hub.

    Credentials come from where the package of the store looks for them: environment variables, files in the home folder.

    Raises:
        ChangedError: from every method, when a file is not the one of `versions`.
        MissingError: from every method, when a file is not there.
        CheckpointError: the package for this kind of store is not installed, or the store does not respond.
    """

    def __init__(self, source: str, versions: Iterable[FileVersion] = ()) -> None:
        self._versions = {version.name: version for version in versions}
        folder, _, name = source.rpartition("/")
        super().__init__(source, named=name or None)
        with _reported(source):
            self._store, root = _open(source if not name else f"{folder}/")
        self._root = str(root).rstrip("/")

    def names(self) -> tuple[str, ...]:
        """Return the names of the files in the folder, sorted; names that are not plain are left out."""
        return self._entries("file")

    def folders(self) -> tuple[str, ...]:
        """Return the names of the folders in the folder, sorted."""
        return self._entries("directory")

    def folder(self, name: str) -> "FsspecFiles":
        """Return the files in one of the folders."""
        return FsspecFiles(f"{self.source.rpartition('/')[0]}/{self._checked(name)}/")

    def neighbors(self) -> tuple[str, ...]:
        """Return the names of the folders beside this one and its own, sorted."""
        above = self._root.rpartition("/")[0]
        return self._entries("directory", above) if above else ()

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        if not is_plain_name(name):
            return False
        try:
            return bool(self._info(name).get("type") == "file")
        except MissingError:
            return False

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        size = self._info(name).get("size")
        if not isinstance(size, int) or size < 0:
            raise CheckpointError(
                f"{printable(name)}: {self.place} does not report its size, so no part of it can be read"
            )
        return size

    def identity(self, names: Iterable[str], *, check: Callable[[], None] = lambda: None) -> str:
        """Return a SHA-256 over name, size and checksum of the files, as the store reports them; no file is read.

        If the store reports no checksum for one of them, the time of its last change and the place are hashed instead.
        """
        lines, complete = [], True
        for name in sorted(names):
            evidence, is_checksum = _evidence(self._info(name))
            complete = complete and is_checksum
            lines.append("\0".join([name, str(self.size(name)), *evidence]))
        if not complete:
            lines.append(self._root)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def versions(self, names: Sequence[str]) -> tuple[FileVersion, ...]:
        """Return size and checksum (or time of the last change) of files, as the store reports them."""
        return tuple(self._version(name, self._info(name)) for name in names)

    def keep_whole(self, *, branch: str | None) -> NoReturn:
        """Raise an error: only files of the Hub can be cached whole."""
        raise CheckpointError(
            f"only models on the Hugging Face Hub can be downloaded (download): copy {self.place} to a local folder and open that"
        )

    def _entries(self, kind: str, root: str = "") -> tuple[str, ...]:
        folder = root or self._root
        with _reported(self.place):
            entries = with_retries(partial(self._store.ls, folder, detail=True))
        # A store may list the folder itself, as an empty file.
        names = {
            str(entry["name"]).rstrip("/").rpartition("/")[2]
            for entry in entries
            if entry["type"] == kind and str(entry["name"]).rstrip("/") != folder
        }
        return tuple(sorted(name for name in names if is_plain_name(name)))

    def _info(self, name: str) -> Mapping[str, Any]:
        path = self._path(name)
        known = self._versions.get(name)
        if known is not None:
            self._store.invalidate_cache()  # a listing from before the change would answer
        try:
            with _reported(name, self.place):
                info = dict(with_retries(partial(self._store.info, path)))
        except MissingError:
            if known is not None:
                raise changed(name, self.place, "it was removed") from None
            raise
        if known is not None:
            known.check(self._version(name, info), self.place)
        return info

    def _version(self, name: str, info: Mapping[str, Any]) -> FileVersion:
        evidence, _ = _evidence(info)
        return FileVersion(source=self.source, name=name, size=int(info.get("size") or 0), modified="\0".join(evidence))

    def _fill(self, name: str, start: int, sink: Sink) -> None:
        path = self._path(name)
        while sink.missing:
            begin = start + sink.done
            count = min(sink.missing, _BLOCK_BYTES)
            with _reported(name, self.place):
                content = with_retries(partial(self._store.cat_file, path, start=begin, end=begin + count))
            if len(content) != count:
                raise CheckpointError(
                    f"{printable(name)}: {self.place} returned {len(content)} bytes instead of {count} from byte {begin} on"
                )
            sink.write(content)

    def _path(self, name: str) -> str:
        return f"{self._root}/{self._checked(name)}"


def _evidence(info: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return what a store reports that changes with the content, and whether it is a checksum."""
    known = {key.lower(): value for key, value in info.items() if value}
    checksums = [f"{key}={known[key]}" for key in _CHECKSUMS if key in known]
    return checksums or [f"{key}={known[key]}" for key in _TIMES if key in known], bool(checksums)


def _open(source: str) -> tuple[Any, str]:
    scheme = source.partition("://")[0].lower()
    try:
        store, root = fsspec.url_to_fs(source)
    except ImportError as error:
        package = str(known_implementations.get(scheme, {}).get("class", "")).partition(".")[0]
        what = f"pip install {package}" if package not in ("", "fsspec") else printable(str(error))
        raise CheckpointError(f"{scheme}:// needs a package that is not installed: {what}") from error
    return store, root


@contextmanager
def _reported(name: str, place: str = "") -> Iterator[None]:
    shown = " of ".join(filter(None, [printable(name), place]))
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # stores raise many kinds of exceptions without a common base class
        if isinstance(error, FileNotFoundError) and not is_temporary(error):
            raise MissingError(f"{shown} is not there") from error
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        reason = printable(str(cause).strip().partition("\n")[0])
        raise CheckpointError(f"{shown} cannot be read: {type(cause).__name__}: {reason}") from error
