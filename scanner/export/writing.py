"""Files of exports, written whole or not at all; nothing that exists is overwritten without `force`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from scanner.checkpoint.names import printable
from scanner.errors import ConfigError, ScannerError


def check(output: str | os.PathLike[str], *, folder: bool = False, force: bool = False) -> Path:
    """Return the path of a file or folder to write, before anything is computed.

    Raises:
        ConfigError: it exists (without `force`; an empty folder may exist), is of the other kind, or its folder does not exist.
    """
    path = Path(output).expanduser()
    shown = printable(str(path))
    try:
        if path.is_dir() != folder and path.exists():
            raise ConfigError(
                "output", f"{shown} is a {'file' if folder else 'folder'}: name a {'folder' if folder else 'file'}"
            )
        taken = path.exists() and (not folder or any(path.iterdir()))
        missing = not path.absolute().parent.is_dir()
    except (OSError, ValueError) as error:
        raise ConfigError("output", f"{shown} cannot be used: {printable(str(error))}") from error
    if taken and not force:
        raise ConfigError("output", f"{shown} exists: name another one, or overwrite it with `force`")
    if missing:
        raise ConfigError("output", f"{shown}: there is no folder {printable(str(path.absolute().parent))}")
    return path


def write(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        ScannerError: the disk is full, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
        temporary.replace(path)
    except OSError as error:
        raise ScannerError(f"{printable(str(path))} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(path: Path, files: Mapping[str, str]) -> None:
    """Write the files of a folder, which is created if it does not exist.

    Raises:
        ScannerError: the disk is full, or a file cannot be written.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise ScannerError(f"{printable(str(path))} cannot be written: {error.strerror or error}") from error
    for name, content in files.items():
        write(path / name, content)
