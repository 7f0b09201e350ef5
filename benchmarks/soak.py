"""Nightly scans again and again on a Hub that changes, with faults injected at random; nothing may be lost or double at the end.

`make soak` runs it for 20 minutes. Every round adds commits, renames or deletes repositories, and starts `rmtscan nightly` as a
process of its own. It is left alone, killed (SIGKILL), stopped (SIGTERM), or loses a worker, and the Hub answers with errors or
cuts connections. Then the faults end, nights run until nothing is left, and the store is checked: `verify` finds nothing, every
commit that was listed is in one state, every scanned commit has exactly one scan with all its matrices, and nothing is staged.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scanner.store import Store, open_store  # noqa: E402
from tests.checkpoint.sources.hub_server import Fault, Hub, serve  # noqa: E402
from tests.fleet.releases import add, config  # noqa: E402
from tests.processes import command, descendants  # noqa: E402

MATRICES = 4
ENDS = ("none", "none", "kill", "kill", "terminate", "worker")
NIGHT = "length_hours = 0\nattempts = 1000\nlease_minutes = 0.5"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="how long faults are injected (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random faults")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="rmtscan-soak-") as folder, serve() as hub:
        return _Soak(hub, Path(folder), chance).run(60 * asked.minutes)


class _Soak:
    def __init__(self, hub: Hub, folder: Path, chance: random.Random) -> None:
        self.hub, self.folder, self.chance = hub, folder, chance
        self.commits: dict[str, str] = {}  # commit -> repository under which it was pushed
        self.ended: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.pushed = 0
        self.file = folder / "watch.toml"
        self.file.write_text(config("org", folder, night=NIGHT))
        # HOME: no token of the user is sent; the paths of Ray's sockets have to be short.
        own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        dropped = {"RAY_ADDRESS", "HF_TOKEN", "RMTSCAN_STORE"}
        self.environment = {name: value for name, value in os.environ.items() if name not in dropped} | own

    def run(self, seconds: float) -> int:
        started, rounds = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            self._change()
            self._break_hub()
            self._night(self.chance.choice(ENDS))
            rounds += 1
            print(f"{time.monotonic() - started:6.0f} s: {rounds} nights, {self.pushed} commits", flush=True)
        self.hub.faults.clear()
        for _ in range(6):
            self._night("none")
        store = open_store(str(self.folder / "store"))
        wrong = self._wrong(store)
        print(f"{rounds} nights, {self.pushed} commits pushed; ends {dict(self.ended)}, faults {dict(self.injected)}")
        print(f"{store.query('scans').num_rows} scans, {store.query('releases').num_rows} releases", flush=True)
        for line in wrong:
            print(f"WRONG: {line}")
        print("nothing is lost or double" if not wrong else f"{len(wrong)} problems")
        return 1 if wrong else 0

    def _change(self) -> None:
        """Push commits; rename or delete a repository now and then."""
        for _ in range(self.chance.randint(1, 3)):
            name = f"org/m{self.chance.randrange(12)}"
            if name in self.hub.renamed:
                continue
            self.pushed += 1
            self.commits[add(self.hub, name, 1000 + self.pushed)] = name
        names = sorted(self.hub.repositories)
        if len(names) > 4 and self.chance.random() < 0.3:
            name = self.chance.choice(names)
            if self.chance.random() < 0.5:
                self.hub.rename(name, f"{name}-renamed{self.pushed}")
            else:
                self.hub.delete(name)

    def _break_hub(self) -> None:
        self.hub.faults.clear()
        for _ in range(self.chance.randint(0, 2)):
            kind = self.chance.choice(("list", "api", "resolve", "storage"))
            fault = (
                Fault(kind, times=self.chance.choice((1, 3, 30)), status=self.chance.choice((500, 503, 429)))
                if kind != "storage" or self.chance.random() < 0.5
                else Fault(kind, times=3, cut=self.chance.randint(1, 2000))
            )
            self.hub.faults.append(fault)
            self.injected[f"{kind} {fault.status or 'cut'}"] += 1

    def _night(self, end: str) -> None:
        arguments = [sys.executable, "-P", "-m", "scanner.cli.main", "nightly", "--config", str(self.file)]
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(arguments, env=self.environment, stdout=log, stderr=log, cwd=self.folder)
            if end != "none":
                try:
                    process.wait(self.chance.uniform(2, 25))
                except subprocess.TimeoutExpired:
                    self._end(process, end)
            try:
                status = process.wait(600)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
                self.ended["HUNG"] += 1
        self.ended[f"{end}:{status}"] += 1

    def _end(self, process: subprocess.Popen[bytes], end: str) -> None:
        if end == "kill":
            process.kill()
        elif end == "terminate":
            process.send_signal(signal.SIGTERM)
        else:
            workers = [pid for pid, _ in descendants(process.pid) if command(pid).startswith("ray::")]
            if workers:
                os.kill(self.chance.choice(workers), signal.SIGKILL)

    def _wrong(self, store: Store) -> list[str]:
        wrong = [f"verify: {one.file} {one.problem}" for one in store.verify() if one.state == "damaged"]
        wrong += [f"{one.scan_id} is not finished" for one in store.unfinished() if not self._is_gone(store, one.model)]
        releases = store.query("releases").to_pylist()
        seen = Counter((row["repository"], row["commit"]) for row in releases)
        wrong += [f"{key} is there {count} times" for key, count in seen.items() if count > 1]
        wrong += [
            f"{row['repository']} is {row['state']}: {row['reason']}"
            for row in releases
            if row["state"] in ("waiting", "planned", "failed")
        ]
        scans = Counter(row["revision"] for row in store.sql("select revision from scans").to_pylist())
        wrong += [f"commit {commit} has {count} scans" for commit, count in scans.items() if count > 1]
        for row in releases:
            if row["state"] == "scanned" and (scans[row["commit"]] != 1 or row["matrices"] != MATRICES):
                wrong.append(
                    f"{row['repository']}@{row['commit']}: {scans[row['commit']]} scans, {row['matrices']} matrices"
                )
        for name, repository in self.hub.repositories.items():
            if (name, repository.branches["main"]) not in seen:
                wrong.append(f"{name} was never seen")
        recorded = {row["scan_id"] for row in releases if row["scan_id"]}
        stored = {row["scan_id"] for row in store.query("scans").to_pylist()}
        wrong += [f"scan {scan_id} of no release" for scan_id in stored - recorded]
        wrong += ["a run hung"] * self.ended["HUNG"]
        return wrong

    def _is_gone(self, store: Store, model: str | None) -> bool:
        """Whether a release was deleted while it was scanned: what is staged of it stays."""
        return any(row["state"] == "skipped" for row in store.query("releases", repository=model).to_pylist())


if __name__ == "__main__":
    sys.exit(main())
