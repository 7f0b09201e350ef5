"""Evaluations in a process that keeps freed memory, as workers do, against the default allocator.

    python benchmarks/bench_evaluation.py [--layers N] [--tokens N] [--repeats N]

Each run is a separate process that evaluates the perplexity of a random Llama with the widths of SmolLM2 three times and prints
the median CPU seconds, in total and in the kernel. With --quick the model is small.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import measure
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from scanner.experiments.nlp.evaluation import Perplexity, Windows
from scanner.experiments.nlp.models import keep_freed_memory
from scanner.experiments.nlp.tokens import Batches

WIDTHS = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


def evaluate(*, small: bool, layers: int, tokens: int) -> dict[str, float]:
    """Return the median CPU seconds of an evaluation in this process."""
    words = 500 if small else 49_152
    config = LlamaConfig(vocab_size=words, num_hidden_layers=layers, **(SMALL if small else WIDTHS))  # type: ignore[arg-type]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    ids = np.random.default_rng(0).integers(0, words, tokens).astype(np.int32)
    measured = Perplexity(windows=Windows.cut(ids, length=min(512, tokens // 2)))
    batches = Batches(0, 1024)
    measured.scores(model, None, batches)
    times = []
    for _ in range(3):
        before = time.process_time(), _kernel_seconds()
        measured.scores(model, None, batches)
        times.append((time.process_time() - before[0], _kernel_seconds() - before[1]))
    return {
        "seconds": measure.median([one for one, _ in times]),
        "kernel": measure.median([kernel for _, kernel in times]),
    }


def _kernel_seconds() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


def main() -> None:
    parser = measure.options("bench_evaluation", __doc__.splitlines()[0], repeats=3)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--child", choices=["plain", "kept"])
    args = parser.parse_args()
    if args.quick:
        args.layers, args.tokens, args.repeats = 1, 256, 1
    if args.child:
        if args.child == "kept":
            keep_freed_memory()
        print(json.dumps(evaluate(small=args.quick, layers=args.layers, tokens=args.tokens)))
        return

    def process(child: str) -> dict[str, Any]:
        command = [
            sys.executable,
            __file__,
            "--child",
            child,
            "--layers",
            str(args.layers),
            "--tokens",
            str(args.tokens),
        ]
        done = subprocess.run(
            [*command, *(["--quick"] if args.quick else [])], capture_output=True, text=True, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    machine = measure.machine()
    runs = measure.alternate({"plain": lambda: process("plain"), "kept": lambda: process("kept")}, args.repeats)
    row: measure.Row = {}
    for name, found in runs.items():
        for what in ("seconds", "kernel"):
            row[f"{name} {what}"] = measure.median([one[what] for one in found])
    plain, kept = (measure.median([one["seconds"] for one in runs[name]]) for name in ("plain", "kept"))
    row |= measure.at_most(kept / plain, None)
    measure.table(f"{args.layers} blocks, {args.tokens} tokens; CPU seconds of an evaluation, one thread", [row])
    measure.write_json(args.json, {"quick": args.quick, "machine": machine, "times": [row]})


if __name__ == "__main__":
    main()
