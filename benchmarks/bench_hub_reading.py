"""Reading of the Hub: our `HubFiles` beside `huggingface_hub.HfFileSystem`, against a Hub on loopback with faults on demand.

The server is that of the tests. Each contestant runs in its own process, where `time.sleep` is replaced: pauses are recorded
and not slept. `hffs` is HfFileSystem with its own retries and without a read cache. `hffs, fsspec path` is HfFileSystem as
`FsspecFiles` reads any store: with fsspec's default read-ahead and another layer of retries.

The server counts the bytes of a response before it writes them, so a response that the client refuses after its headers counts in
full; the peak memory shows whether the client read it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import measure
import numpy as np
from safetensors.numpy import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.checkpoint.sources.hub_server import TOKEN, Fault, Hub, serve

CONTESTANTS = ("ours", "hffs", "hffs, fsspec path")
FILE = "model.safetensors"


@dataclass
class Sizes:
    layers: int = 8
    width: int = 256
    part: int = 24 * 2**20
    large: int = 256 * 2**20


@dataclass
class Scenario:
    """One case: the faults of the server and what the client reads."""

    name: str
    faults: list[Fault] = field(default_factory=list)
    call: str = "part"
    arguments: tuple[Any, ...] = ()
    prepare: Callable[[Hub], None] = lambda hub: None
    undo: Callable[[Hub], None] = lambda hub: None


# ---- in the process of a contestant


def child(connection: Connection, contestant: str) -> None:
    """Serve calls until the connection is closed."""
    import logging

    import hub_filesystem

    logging.disable(logging.WARNING)
    if contestant != "ours":
        kind = hub_filesystem.HfFileSystemFiles if contestant == "hffs" else hub_filesystem.FsspecPathFiles
        hub_filesystem.install(kind)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        if not 0 <= seconds < 1e9:
            raise OverflowError(f"a pause of {seconds} s")
        pauses.append(seconds)

    time.sleep = pause  # type: ignore[assignment]
    calls: dict[str, Callable[..., str]] = {"part": read_part, "model": read_model}
    while True:
        try:
            call, arguments = connection.recv()
        except EOFError:
            return
        pauses.clear()
        before = _reset_peak()
        started = time.perf_counter()
        answer: dict[str, Any] = {"digest": "", "error": ""}
        try:
            answer["digest"] = calls[call](*arguments)
        except Exception as error:  # the type of the error is part of the result
            answer["error"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        answer |= {"seconds": time.perf_counter() - started, "pauses": list(pauses), "memory": _peak() - before}
        connection.send(answer)


def read_part(source: str, name: str, start: int, size: int) -> str:
    """Read one range, as a worker does on its first task of a model."""
    from scanner.checkpoint.sources.files import ByteRange, open_files
    from scanner.checkpoint.sources.hub_files import hub_files

    hub_files.cache_clear()
    content = open_files(source).read_ranges([ByteRange(name=name, start=start, size=size)])[0]
    return hashlib.sha256(content.data).hexdigest()


def read_model(reference: str, roles: tuple[str, ...]) -> str:
    """Open a model as the driver does, then read its matrices one by one as a worker does."""
    from scanner.checkpoint import Selection, list_matrices, open_checkpoint, read_matrix
    from scanner.checkpoint.sources.hub_files import hub_files

    hub_files.cache_clear()
    opened = open_checkpoint(reference)
    chosen = list_matrices(opened, Selection(only=roles)).matrices
    hub_files.cache_clear()
    matrices = (np.ascontiguousarray(np.asarray(read_matrix(opened.source, ref))) for ref in chosen)
    return " ".join(sorted(hashlib.sha256(matrix.tobytes()).hexdigest() for matrix in matrices))


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


# ---- in the process of the server


class Contestant:
    """A process that reads through one implementation."""

    def __init__(self, name: str, hub: Hub, cache: str) -> None:
        here, there = multiprocessing.Pipe()
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": f"{cache}/{name}", "HF_TOKEN": TOKEN}
        os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
        os.environ.pop("HF_HUB_OFFLINE", None)
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=child, args=(there, name), daemon=True)
        self.process.start()
        self.connection = here
        self.hub = hub

    def run(self, scenario: Scenario) -> dict[str, Any]:
        hub = self.hub
        scenario.prepare(hub)
        hub.faults = [Fault(**vars(fault)) for fault in scenario.faults]
        hub.requests.clear()
        try:
            self.connection.send((scenario.call, scenario.arguments))
            if not self.connection.poll(120):
                raise RuntimeError(f"{scenario.name}: no answer within 120 s")
            answer: dict[str, Any] = self.connection.recv()
        finally:
            hub.faults = []
            scenario.undo(hub)
        api = sum(one.sent for one in hub.seen("api"))
        answer |= {kind: len(hub.seen(kind)) for kind in ("api", "resolve", "storage")}
        answer |= {
            "bytes": hub.sent() - api,
            "token": any(TOKEN in str(one) for one in hub.seen("storage")),
        }
        return answer


def scenarios(hub: Hub, sizes: Sizes) -> list[tuple[Scenario, int, str]]:
    """Return every scenario with the number of bytes it needs and the digest of its content (empty: an error is expected)."""
    rng = np.random.default_rng(0)
    w = sizes.width
    shapes = {f"self_attn.{name}_proj": (w, w) for name in "qkvo"} | {
        "mlp.up_proj": (4 * w, w),
        "mlp.down_proj": (w, 4 * w),
    }
    files: dict[str, bytes] = {}
    weight_map: dict[str, str] = {}
    chosen: dict[str, np.ndarray[Any, Any]] = {}
    for shard in range(4):
        tensors = {
            f"model.layers.{layer}.{name}.weight": rng.standard_normal(shape, dtype=np.float32)
            for layer in range(shard, sizes.layers, 4)
            for name, shape in shapes.items()
        }
        file = f"model-{shard + 1:05}-of-00004.safetensors"
        files[file] = save(tensors)
        weight_map |= dict.fromkeys(tensors, file)
        chosen |= {name: tensor for name, tensor in tensors.items() if "q_proj" in name}
    headers = sum(8 + int.from_bytes(body[:8], "little") for body in files.values())
    files["config.json"] = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    headers += sum(len(files[name]) for name in ("config.json", "model.safetensors.index.json"))
    hub.commit("org/shards", files)
    digest = sorted(hashlib.sha256(tensor.tobytes()).hexdigest() for tensor in chosen.values())
    wanted = headers + sum(tensor.nbytes for tensor in chosen.values())

    body = rng.bytes(sizes.large + 2**20)
    commit = hub.commit("org/single", {FILE: body})
    source = f"hf://org/single@{commit}"

    def part(name: str, *faults: Fault, start: int = 5_000, size: int = sizes.part, **more: Any) -> Any:
        ends_well = more.pop("ends_well", True)
        scenario = Scenario(name=name, faults=list(faults), arguments=(source, FILE, start, size), **more)
        return scenario, size, hashlib.sha256(body[start : start + size]).hexdigest() if ends_well else ""

    later = format_datetime(datetime.now(UTC) + timedelta(seconds=250), usegmt=True)
    cut = sizes.part // 2
    return [
        (
            Scenario("one role of 4 shards", call="model", arguments=("org/shards", ("query",))),
            wanted,
            " ".join(digest),
        ),
        part("one large tensor", size=sizes.large),
        part("cut once, in the middle", Fault("storage", cut=cut)),
        part("cut 12 times, after 1.5 MB each", Fault("storage", times=12, cut=1_500_000)),
        part("429 once, Retry-After 37", Fault("storage", status=429, headers={"Retry-After": "37"})),
        part("429 once, Retry-After a date in 4 min", Fault("storage", status=429, headers={"Retry-After": later})),
        part("429 on resolve, Retry-After 37", Fault("resolve", status=429, headers={"Retry-After": "37"})),
        part("429 on api, Retry-After 37", Fault("api", status=429, headers={"Retry-After": "37"})),
        part(
            "429 always, Retry-After 3600",
            Fault("storage", times=99, status=429, headers={"Retry-After": "3600"}),
            ends_well=False,
        ),
        part(
            "429 always, Retry-After of 400 digits",
            Fault("storage", times=99, status=429, headers={"Retry-After": "9" * 400}),
            ends_well=False,
        ),
        part("503 twice", Fault("storage", times=2, status=503)),
        part("503 always", Fault("storage", times=99, status=503), ends_well=False),
        part("body shorter than promised", Fault("storage", short=cut)),
        part("another range than asked for", Fault("storage", times=99, shift=8), ends_well=False),
        part("the whole file for a range", Fault("storage", times=99, whole=True), ends_well=False),
        part(
            "gated, no access",
            Fault("resolve", times=99, status=403, headers={"X-Error-Code": "GatedRepo"}),
            ends_well=False,
        ),
        (
            Scenario("file that is not there", arguments=(source, "other.safetensors", 0, 8)),
            0,
            "",
        ),
        (
            Scenario("commit that is not there", arguments=(f"hf://org/single@{'0' * 40}", FILE, 0, 8)),
            0,
            "",
        ),
        (
            Scenario(
                "model that was renamed",
                arguments=(source.replace("single", "old"), FILE, 5_000, 2**20),
                prepare=lambda hub: hub.renamed.update({"org/old": "org/single"}),
                undo=lambda hub: hub.renamed.clear(),
            ),
            2**20,
            hashlib.sha256(body[5_000 : 5_000 + 2**20]).hexdigest(),
        ),
    ]


def outcome(answer: dict[str, Any], expected: str) -> str:
    """Describe the result: the right bytes, an error, or a failure."""
    if answer["error"]:
        kind = str(answer["error"]).partition(":")[0]
        return kind if not expected else f"FAILS: {kind}"
    if answer["digest"] == expected:
        return "right"
    return "WRONG BYTES"


def main() -> None:
    parser = measure.options("bench_hub_reading", __doc__.splitlines()[0], repeats=3)
    args = parser.parse_args()
    sizes = Sizes()
    if args.quick:
        sizes, args.repeats = Sizes(part=8 * 2**20, large=16 * 2**20), 1
    machine = measure.machine()
    rows: list[measure.Row] = []
    details: list[measure.Row] = []
    broken = False
    with serve() as hub, tempfile.TemporaryDirectory() as cache:
        contestants = {name: Contestant(name, hub, cache) for name in (CONTESTANTS[:2] if args.quick else CONTESTANTS)}
        for scenario, wanted, expected in scenarios(hub, sizes):
            repeats = 1 if scenario.faults or not expected else args.repeats
            # The first call of a process imports modules: measure another one.
            calls = {name: partial(one.run, scenario) for name, one in contestants.items()}
            found = measure.alternate(calls, repeats + (repeats > 1))
            base = measure.median([one["seconds"] for one in found["ours"][-repeats:]])
            for name, answers in found.items():
                last = answers[-1]
                spent = measure.median([one["seconds"] for one in answers[-repeats:]])
                result = outcome(last, expected)
                broken |= name == "ours" and (result.startswith(("FAILS", "WRONG")) or last["token"])
                broken |= name == "ours" and scenario.name.startswith("one ") and last["bytes"] > 1.05 * wanted
                rows.append(
                    {
                        "scenario": scenario.name,
                        "through": name,
                        "result": result,
                        "bytes / needed": last["bytes"] / wanted if wanted else None,
                        "api": last["api"],
                        "resolve": last["resolve"],
                        "storage": last["storage"],
                        "pauses": len(last["pauses"]),
                        "pause s": round(sum(last["pauses"]), 1),
                        "peak MiB": round(last["memory"] / 2**20),
                        "s": spent,
                        "ratio": spent / base,
                        "token leaks": "YES" if last["token"] else "no",
                    }
                )
                details.append({"scenario": scenario.name, "through": name, "error": last["error"]})
    measure.table("Reading of the Hub (loopback); pauses are recorded, not slept; ratio of times to ours", rows)
    measure.write_json(
        args.json, {"quick": args.quick, "machine": machine, "rows": rows, "errors": details, "sizes": vars(sizes)}
    )
    if broken:
        sys.exit("HubFiles breaks a promise: see the table")


if __name__ == "__main__":
    main()
