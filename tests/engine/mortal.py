"""Workers that die, and tasks that kill them; does not import the scanner, so that new workers start fast."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Work:
    name: str
    log: Path
    fate: str = "lives"
    seconds: float = 0.0
    cost: float = 1.0


class Mortal:
    """Logs the name of each task before running it."""

    def ready(self) -> None:
        pass

    def run(self, work: Work) -> str:
        with work.log.open("a") as log:
            log.write(f"{work.name}\n")
        time.sleep(work.seconds)
        if work.fate == "exits":
            os._exit(1)
        if work.fate == "is stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if work.fate in ("is stopped", "sleeps forever"):  # the signal may reach this thread late
            time.sleep(10_000)
        if work.fate == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return work.name.upper()


class TellsWhere(Mortal):
    """Returns the id of its process; its first task ends when two processes have one, so that both have work."""

    def run(self, work: Work) -> str:
        with work.log.open("a") as log:
            log.write(f"{os.getpid()}\n")
        until = time.monotonic() + 60.0
        while len(set(work.log.read_text().splitlines())) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(work.seconds)
        return str(os.getpid())


class Refuses(Mortal):
    def __init__(self, *_: object) -> None:
        raise RuntimeError("\x1b[31mno such device")


class DiesInTheConstructor(Mortal):
    def __init__(self) -> None:
        os._exit(1)


class HangsWhileItStarts(Mortal):
    """The first one stops; those that follow start."""

    marker = Path()

    def __init__(self) -> None:
        if not self.marker.exists():
            self.marker.touch()
            time.sleep(10_000)


class RefusesOnce(Mortal):
    """Leaves a marker when it fails; subclasses decide where it fails."""

    marker = Path()

    def __init__(self) -> None:
        if not self.marker.exists():
            self.marker.touch()
            raise RuntimeError("the first one fails")
