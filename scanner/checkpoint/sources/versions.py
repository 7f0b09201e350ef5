"""Versions of files: what tells whether a file is still the one that was hashed."""

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from scanner.checkpoint.names import printable
from scanner.errors import ChangedError

#: Seconds within which two writes may have the same time: the clock of a local file system advances in steps.
CLOCK_STEP = 0.02


@dataclass(frozen=True, kw_only=True)
class FileVersion:
    """One version of a file; small and picklable, and comparable on another machine.

    Attributes:
        source: source of the `Files` that it belongs to.
        name: name of the file.
        size: size in bytes.
        modified: time of the last change (nanoseconds), or the checksum that a remote store reports.
        machine: the machine that saw it; empty if it does not matter.
        inode: device, inode, and time of the last change of the inode (nanoseconds): compared on the same machine only, because
            another one numbers them differently.
    """

    source: str
    name: str
    size: int
    modified: str
    machine: str = ""
    inode: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of_stat(cls, source: str, name: str, found: os.stat_result) -> "FileVersion":
        """Return the version of a local file."""
        return cls(
            source=source,
            name=name,
            size=found.st_size,
            modified=str(found.st_mtime_ns),
            machine=socket.gethostname(),
            inode=(found.st_dev, found.st_ino, found.st_ctime_ns),
        )

    def check(self, now: "FileVersion", place: str) -> None:
        """Compare with the version that is there now.

        Raises:
            ChangedError: it is another.
        """
        mine, other = (replace(version, source="", machine="", inode=(0, 0, 0)) for version in (self, now))
        if mine == other and (self.machine != now.machine or self.inode == now.inode):
            return
        what = "was written or replaced"
        if self.size != now.size:
            what = f"had {self.size} bytes and has {now.size}"
        raise changed(self.name, place, what)


def changed(name: str, place: str, what: str) -> ChangedError:
    """Return the error of a file that is not the one that was hashed."""
    return ChangedError(
        f"{printable(name)} in {place} changed while it was in use ({what}), so nothing that was read from it counts: run the "
        "command again once nothing writes to it"
    )


def versions_of(source: str, versions: Iterable[FileVersion]) -> tuple[FileVersion, ...]:
    """Return the versions of the files of one source."""
    return tuple(version for version in versions if version.source == source)


def settle(found: os.stat_result) -> bool:
    """Wait until a later write of the file has a later time, if it has just been written; tell whether it had been."""
    age = time.time() - max(found.st_mtime, found.st_ctime)
    if not 0 <= age < CLOCK_STEP:
        return False
    time.sleep(CLOCK_STEP - age)
    return True
