"""Many small checkpoints of a Hub with a slow answer, and one large local checkpoint: what waits, and what memory it takes.

The Hub runs on loopback in a process of its own and waits before it answers a request. All repositories have the same weights; a
repository and its commit are the identity, so each is scanned by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

NAME = "fleet"
LATENCY = 0.08
REPOSITORIES, QUICK_REPOSITORIES = 1000, 60
SIZE = 256
#: What is asked: idle workers, overhead of the last checkpoints relative to the first, growth of the driver (bytes a checkpoint).
IDLE, OVERHEAD, GROWTH = 0.10, 1.2, 20e3
LARGE_BYTES, QUICK_LARGE_BYTES = 30 << 30, 1 << 30
DISPATCH_SECONDS = 3.0


def serve(repositories: int, matrices: int) -> None:
    """Run the Hub until stdin is closed; prints its addresses."""
    sys.path.insert(0, os.fspath(Path(__file__).parent.parent))
    import torch
    from safetensors.torch import save

    from tests.checkpoint.sources import hub_server

    generator = torch.Generator().manual_seed(0)
    weights = save(
        {
            f"model.layers.{layer}.self_attn.q_proj.weight": torch.randn(SIZE, SIZE, generator=generator)
            for layer in range(matrices)
        }
    )
    config = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()
    answer = hub_server._Handler.start

    def slow_answer(self: Any, kind: str) -> Any:
        time.sleep(LATENCY)
        return answer(self, kind)

    hub_server._Handler.start = slow_answer  # type: ignore[method-assign]
    with hub_server.serve() as hub:
        for number in range(repositories):
            commit = f"{number:040x}"
            files = {"model.safetensors": weights, "config.json": config}
            hub.repositories[f"org/model-{number}"] = hub_server.Repository(
                branches={"main": commit}, commits={commit: files}
            )
        print(hub.endpoint, flush=True)
        sys.stdin.read()


class Meter:
    """Counts the seconds in which workers have no task, from the first dispatch on, and the seconds that tasks compute."""

    def __init__(self) -> None:
        from scanner.engine import run
        from scanner.engine.pool import Pool

        self.idle = self.computed = 0.0
        self.began = self.last = 0.0
        self.workers = 0
        meter, dispatch, collect = self, Pool._dispatch, Pool._collect

        def dispatching(pool: Any) -> None:
            meter.note(pool)
            dispatch(pool)

        def collecting(pool: Any, *arguments: Any) -> None:
            meter.note(pool)
            collect(pool, *arguments)

        Pool._dispatch, Pool._collect = dispatching, collecting  # type: ignore[method-assign, assignment]
        count = run._Status.count

        def counting(status: Any, task: Any, result: Any, **more: Any) -> None:
            meter.computed += sum(result.stages.get(stage, 0.0) for stage in ("decompose", "test", "compute"))
            count(status, task, result, **more)

        run._Status.count = counting  # type: ignore[method-assign, assignment]

    def note(self, pool: Any) -> None:
        now = time.perf_counter()
        self.workers = max(self.workers, len(pool._actors))
        if any(actor.running for actor in pool._actors) and not self.began:
            self.began = self.last = now
        if self.began:
            self.idle += (now - self.last) * sum(not actor.running for actor in pool._actors)
            self.last = now


def resident() -> int:
    """Return the resident set of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_fleet(folder: Path, repositories: int, work: float) -> tuple[list[measure.Row], list[measure.Row]]:
    """Scan all repositories of the Hub, in this process on a local Ray."""
    matrices = max(1, round(work / seconds_of_one()))
    command = [sys.executable, os.fspath(Path(__file__)), "--serve", str(repositories), str(matrices)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        assert hub.stdin is not None
        endpoint = hub.stdout.readline().strip()
        # Read when huggingface_hub is imported: here and in the workers.
        os.environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": os.fspath(folder / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        try:
            return _fleet(folder, repositories, matrices)
        finally:
            hub.stdin.close()


def seconds_of_one() -> float:
    """Measure the analysis of one matrix."""
    import torch

    from scanner.rmt.analysis import analyze

    matrix = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    analyze(matrix)
    return min(measure.seconds(lambda: analyze(matrix)) for _ in range(3))


def _fleet(folder: Path, repositories: int, matrices: int) -> tuple[list[measure.Row], list[measure.Row]]:
    from scanner.engine import ModelReport, PoolOptions, ScanObserver
    from scanner.engine.scan import scan

    meter = Meter()
    moments: list[tuple[float, float, int]] = []  # time, computed seconds, resident set

    class Moments(ScanObserver):
        def model_done(self, model: ModelReport) -> None:
            if model.error is not None:
                raise RuntimeError(str(model.error))
            moments.append((time.perf_counter(), meter.computed, resident()))

    started = time.perf_counter()
    named = (f"org/model-{number}" for number in range(repositories))
    scan(named, store=folder / "store", ensembles=(), pool=PoolOptions(address="local"), observer=Moments())
    elapsed = meter.last - meter.began
    some = min(100, repositories // 3)
    workers = meter.workers

    def overhead(first: tuple[float, float, int], last: tuple[float, float, int], count: int) -> float:
        return ((last[0] - first[0]) * workers - (last[1] - first[1])) / count

    begin = (meter.began, 0.0, 0)
    early, late = overhead(begin, moments[some - 1], some), overhead(moments[-some - 1], moments[-1], some)
    wall_early = (moments[some - 1][0] - meter.began) / some
    wall_late = (moments[-1][0] - moments[-some - 1][0]) / some
    rss_early = sum(rss for _, _, rss in moments[some // 2 : some]) / (some - some // 2)
    rss_late = sum(rss for _, _, rss in moments[-(some // 2) :]) / (some // 2)
    idle = meter.idle / (workers * elapsed)
    figures: list[measure.Row] = [
        {"figure": "repositories", "value": repositories},
        {"figure": "matrices of each", "value": matrices},
        {"figure": "workers", "value": workers},
        {"figure": "seconds from the command to the first dispatch", "value": meter.began - started},
        {"figure": "seconds from the first dispatch to the last commit", "value": moments[-1][0] - meter.began},
        {"figure": "seconds of computing, of a checkpoint", "value": meter.computed / repositories},
        {"figure": "share of the workers' time that is computing", "value": meter.computed / (workers * elapsed)},
        {"figure": f"overhead of a checkpoint, first {some}, ms", "value": 1e3 * early},
        {"figure": f"overhead of a checkpoint, last {some}, ms", "value": 1e3 * late},
        {"figure": "driver's memory, early, MB", "value": rss_early / 1e6},
        {"figure": "driver's memory, late, MB", "value": rss_late / 1e6},
    ]
    growth = (rss_late - rss_early) / max(1, repositories - some)
    ratios: list[measure.Row] = [
        {"ratio of": "workers without a task / all, after the first dispatch"} | measure.at_most(idle, IDLE),
        {"ratio of": f"time of a checkpoint, last {some} / first {some}"}
        | measure.at_most(wall_late / wall_early, OVERHEAD),
        {"ratio of": f"overhead of a checkpoint, last {some} / first {some}"} | measure.at_most(late / early, OVERHEAD),
        {"ratio of": "growth of the driver by checkpoint, bytes / 20 kB"} | measure.at_most(growth / GROWTH, 1.0),
    ]
    return figures, ratios


def write_sparse(folder: Path, size: int) -> Path:
    """Write a sharded checkpoint whose files have holes; only the matrices of layer 0 have entries."""
    import numpy as np

    width, shards = 2048, 8
    folder.mkdir(parents=True)
    layers = max(shards, size // (width * width * 4 * 2))
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header: dict[str, object] = {}
        end = 0
        for layer in range(shard, layers, shards):
            for role in ("q_proj", "k_proj"):
                tensor = f"model.layers.{layer}.self_attn.{role}.weight"
                header[tensor] = {
                    "dtype": "F32",
                    "shape": [width, width],
                    "data_offsets": [end, end + 4 * width * width],
                }
                weight_map[tensor] = name
                end += 4 * width * width
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            if shard == 0:
                noise = np.random.default_rng(0).standard_normal((2 * width, width), dtype=np.float32)
                file.write(noise.tobytes())
            file.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    return folder


def measure_large(folder: Path, size: int) -> tuple[list[measure.Row], list[measure.Row]]:
    """Scan two matrices of a large local checkpoint."""
    from bench_scaling import worker_peak

    from scanner import Method, Selection
    from scanner.engine import PoolOptions, ScanObserver
    from scanner.engine.scan import scan

    checkpoint = write_sparse(folder / "large", size)
    before = resident()

    class Moments(ScanObserver):
        started = first = peak = worker = driver = 0.0

        def starting(self, *_: object) -> None:
            self.started = time.perf_counter()

        def dispatching(self) -> None:
            self.first = time.perf_counter()

        def task_done(self, *_: object, **__: object) -> None:
            self.worker = max(self.worker, worker_peak())
            self.driver = max(self.driver, resident())

    told = Moments()
    began = time.perf_counter()
    method = Method(selection=Selection(layers=(0,)))
    report = scan(
        checkpoint,
        store=folder / "large-store",
        method=method,
        ensembles=(),
        pool=PoolOptions(address="local", workers=1),
        observer=told,
    )
    total = time.perf_counter() - began
    [model] = report.models
    if model.error is not None or model.analyzed != 2:
        raise RuntimeError(f"the scan failed: {model.error}")
    opened, ready = told.started - began, told.first - told.started
    figures: list[measure.Row] = [
        {
            "figure": "bytes of the checkpoint, GB",
            "value": sum(one.stat().st_size for one in checkpoint.iterdir()) / 1e9,
        },
        {"figure": "seconds until it is open", "value": opened},
        {"figure": "seconds of the start of Ray and of a worker", "value": ready},
        {"figure": "seconds until it is hashed and committed", "value": total},
        {"figure": "driver's memory beyond its start, MB", "value": max(0.0, told.driver - before) / 1e6},
        {"figure": "largest memory of a worker, MB", "value": told.worker / 1e6},
    ]
    ratios: list[measure.Row] = [
        {"ratio of": "first dispatch beyond the start of Ray / 3 s"} | measure.at_most(opened / DISPATCH_SECONDS, 1.0)
    ]
    return figures, ratios


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), int(sys.argv[3]))
        return 0
    parser = measure.options(NAME, __doc__ or "", repeats=1)
    parser.add_argument("--work", type=float, default=0.5, metavar="SECONDS", help="computing of each checkpoint (0.5)")
    parser.add_argument("--repositories", type=measure.count, default=0, metavar="N", help="of the Hub (1000)")
    args = parser.parse_args()
    repositories = args.repositories or (QUICK_REPOSITORIES if args.quick else REPOSITORIES)
    os.environ["RMTSCAN_HASH_CACHE"] = "0"
    with tempfile.TemporaryDirectory(prefix="rmtscan-bench-") as folder:
        figures, ratios = measure_fleet(Path(folder), repositories, args.work)
        machine = measure.machine()
        measure.table(f"{repositories} repositories of a Hub with {1e3 * LATENCY:.0f} ms a request", figures)
        large, more = measure_large(Path(folder), QUICK_LARGE_BYTES if args.quick else LARGE_BYTES)
        measure.table("Two matrices of a large local checkpoint", large)
        ratios += more
        measure.table("What is asked", ratios)
    content = {"quick": args.quick, "machine": machine, "fleet": figures, "large": large, "ratios": ratios}
    measure.write_json(args.json, content)
    return int(not args.quick and any(row["met"] == "NO" for row in ratios))


if __name__ == "__main__":
    sys.exit(main())
