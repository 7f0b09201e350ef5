"""Which models a folder holds beside the one that is read, and in the folders inside it: names are looked at, nothing is read."""

from collections.abc import Collection, Iterator

from scanner.checkpoint.formats.commands import reference_of
from scanner.checkpoint.formats.format import format_of
from scanner.checkpoint.formats.parts import check_ranks, first_parts, is_slice
from scanner.checkpoint.sources.files import SCHEME, Files
from scanner.errors import CheckpointError

# Pipelines have one level of folders, collections of pipelines two. In object stores each folder costs a request.
_MAX_DEPTH = 2
_MAX_FOLDERS = 200
_MAX_REQUESTS = 20


def models_below(files: Files) -> tuple[str, ...]:
    """Return the references of the models in the folders of a folder, at most two levels deep.

    Raises:
        CheckpointError: a folder cannot be read.
    """
    found: list[str] = []
    for folder, name, siblings in _folders(files):
        names = _weights(folder.folder(name))
        if not is_slice(name, siblings) and any(not is_slice(one, names) for one in names):
            found.append(reference_of(folder, name))
    return tuple(found)


def check_slices_below(files: Files) -> None:
    """Refuse a folder whose folders hold slices of a model, or are slices themselves; see `check_ranks`.

    Raises:
        CheckpointError: they do, or a folder cannot be read.
    """
    for folder, name, siblings in _folders(files):
        names = _weights(folder.folder(name))
        if names:
            check_ranks([name], siblings)
            check_ranks(names, names)


def folders_with(files: Files, suffix: str) -> tuple[str, ...]:
    """Return the folders inside a folder that hold files with a suffix, by their paths in it.

    Raises:
        CheckpointError: a folder cannot be read.
    """
    start = len(files.source.rstrip("/")) + 1
    return tuple(
        reference_of(folder, name)[start:]
        for folder, name, _ in _folders(files)
        if any(inside.endswith(suffix) for inside in folder.folder(name).names())
    )


def models_beside(files: Files, used: Collection[str]) -> tuple[str, ...]:
    """Return the references of other models in a folder and in the folders inside it, beside the files that are used.

    Empty if the store of the files cannot list a folder.
    """
    try:
        names = [name for name in _weights(files) if name not in used]
        whole = first_parts([name for name in names if not is_slice(name, names)])
        return (*(reference_of(files, name) for name in whole), *models_below(files))
    except CheckpointError:
        return ()


def _folders(files: Files) -> Iterator[tuple[Files, str, tuple[str, ...]]]:
    """Yield the folders inside a folder, level by level: where each is, its name, and the names beside it with its own."""
    has_requests = files.commit is None and SCHEME.match(files.source) is not None
    left = _MAX_REQUESTS if has_requests else _MAX_FOLDERS
    level = [files]
    for _ in range(1 if has_requests else _MAX_DEPTH):
        following = []
        for folder in level:
            siblings = folder.folders()
            for name in siblings:
                if left and not name.startswith("."):
                    left -= 1
                    yield folder, name, siblings
                    following.append(folder.folder(name))
        level = following


def _weights(files: Files) -> list[str]:
    return [name for name in files.names() if format_of(name) is not None]
