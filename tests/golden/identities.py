"""Identities that commands look up in a store before they start a worker.

The commands run until they would start Ray. The names of the files that they look up in the store hold the identities, so
nothing here depends on how the project is divided into modules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from fsspec.implementations.local import LocalFileSystem

from scanner import open_checkpoint
from tests.fixtures.store import unpack

from .command import run

FILE = Path(__file__).parent / "identities.json"

_ASKED = ("isfile", "isdir", "exists", "info", "cat_file", "ls", "open")
_IDENTITY = re.compile(r"/store/[a-z_-]+/([0-9a-f]{16})(?![0-9a-f])")

SCAN = ["scan", "models/base"]
COMPARE = ["compare", "models/base", "models/tuned"]
ACTIVATIONS = ["activations", "models/llama", "--text", "texts/text.txt"]
ABLATE = ["ablate", "models/llama", "--text", "texts/text.txt", "--tokens", "128", "--window", "32"]
SLICING = ["slicing", "models/llama", "--text", "texts/text.txt", "--tokens", "128", "--window", "32"]
FINETUNE = ["finetune", "models/bert", "--text", "texts/labeled.jsonl"]
LAZY = ["lazy-learning", "--data", "texts/blobs.npz", "--seeds", "1"]
ACCURACY = ["ablate", "models/llama", "--text", "texts/table.csv", "--metric", "accuracy", "--roles", "key"]

CALLS: tuple[list[str], ...] = (
    SCAN,
    [*SCAN, "--only", "query"],
    [*SCAN, "--only", "mlp_down,query"],
    [*SCAN, "--layers", "0"],
    [*SCAN, "--layers", "0-1"],
    [*SCAN, "--embeddings"],
    ["scan", "models/llama", "--heads"],
    [*SCAN, "--sigma", "median"],
    [*SCAN, "--sigma", "std"],
    [*SCAN, "--sigma", "init"],
    [*SCAN, "--sigma", "bulk"],
    [*SCAN, "--null", "table"],
    [*SCAN, "--null", "mc:100"],
    [*SCAN, "--ensemble", "gaussian"],
    ["scan", "models/llama"],
    ["scan", "models/llama", "--only", "key,value", "--layers", "1", "--heads", "--sigma", "std", "--null", "mc:200"],
    ["scan", "models/llama", "models/tuned"],
    ["scan", "delta:models/base..models/tuned"],
    COMPARE,
    [*COMPARE, "--only", "query", "--sigma", "std"],
    [*COMPARE, "--layers", "1", "--null", "mc:100"],
    ["compare", "models/tuned", "models/base"],
    ACTIVATIONS,
    [*ACTIVATIONS, "--tokens", "100"],
    [*ACTIVATIONS, "--tokens", "128", "--window", "32", "--dtype", "bfloat16"],
    [*ACTIVATIONS, "--only", "query,mlp_down", "--layers", "0"],
    ABLATE,
    [*ABLATE, "--roles", "query", "--sets", "regions", "--random", "2"],
    [*ABLATE, "--metric", "kl", "--by", "layer", "--dtype", "bfloat16"],
    [*ABLATE, "--stride", "16"],
    ACCURACY,
    [*ACCURACY, "--examples", "6", "--prompt", "{text} is", "--answers", "w1,w2"],
    SLICING,
    [*SLICING, "--order", "after", "--deciles", "1,10", "--calibration-tokens", "128"],
    [*SLICING, "--calibration", "texts/long.txt", "--metric", "kl"],
    FINETUNE,
    [*FINETUNE, "--epochs", "1", "--lr", "1e-3", "--batch", "8", "--length", "16"],
    [*FINETUNE, "--seeds", "1", "--order", "remove-first", "--deciles", "10", "--roles", "query"],
    [*FINETUNE, "--examples", "20", "--test-share", "0.4"],
    LAZY,
    [*LAZY, "--alpha", "2", "--frozen", "", "--epochs", "3", "--batch", "16"],
    ["lazy-learning", "--seeds", "2", "--alpha", "1", "--frozen", "1"],
    [*SCAN, "--scale", "robust"],
    [*SCAN, "--scale", "total"],
    [*COMPARE, "--scale", "robust"],
    [*SCAN, "--products"],
    [*SCAN, "--head-mass"],
    [*ACTIVATIONS, "--sign-draws", "39"],
    [*ACTIVATIONS, "--sign-draws", "39", "--halves", "--map", "query:0"],
    [*FINETUNE, "--remove", "after-norm"],
    [*LAZY, "--hidden", "24,8", "--normalize", "images"],
    [*SCAN, "--metrics", "rmt"],
    [*SCAN, "--metrics", "alpha_farms,ww_D"],
    [*COMPARE, "--metrics", "weightwatcher"],
)
"""Commands without `--store`; places are relative to the unpacked fixture. Without `--scale`, `--metrics` and `--sign-draws`, they
stand for `--scale none`, `--metrics none` and `--sign-draws 0`: versions before 0.2 had none of them, and their identities are
those of results without them."""

_SCAN_BEFORE = (("--scale", "none"), ("--metrics", "none"))
_BEFORE = {"scan": _SCAN_BEFORE, "compare": _SCAN_BEFORE, "activations": (("--sign-draws", "0"),)}


class _StartedError(BaseException):
    """Ray would be started now."""


@contextmanager
def _watching(found: set[str]) -> Iterator[None]:
    """Note identities in the names of files that are asked for, and stop where Ray would be started."""

    def noting(original: Any) -> Any:
        def note(self: LocalFileSystem, path: Any, *arguments: Any, **options: Any) -> Any:
            found.update(_IDENTITY.findall(str(path)))
            return original(self, path, *arguments, **options)

        return note

    def stop(*_: object, **__: object) -> None:
        raise _StartedError

    patches = [mock.patch.object(LocalFileSystem, name, noting(getattr(LocalFileSystem, name))) for name in _ASKED]
    patches += [mock.patch.object(ray, "init", stop), mock.patch.object(ray, "is_initialized", return_value=False)]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def identities(call: list[str], folder: Path, store: Path) -> list[str]:
    """Identities of the scans, comparisons and runs of a command, sorted.

    Args:
        call: one of `CALLS`.
        folder: into which the fixture was unpacked.
        store: a path that ends in `store` and does not exist.

    Raises:
        AssertionError: the command ends before it starts a worker.
    """
    found: set[str] = set()
    earlier = [word for option in _BEFORE.get(call[0], ()) if option[0] not in call for word in option]
    placed = [re.sub(r"(models|texts)/", rf"{folder}/\1/", word) for word in [*call, *earlier]]
    try:
        with _watching(found):
            printed = run(*placed, "--store", store, "--workers", "1")
    except _StartedError:
        return sorted(found)
    raise AssertionError(f"{call}: exit status {printed.status}: {printed.err}")


def contents(folder: Path) -> dict[str, str]:
    """Identity of the content of every checkpoint of the fixture."""
    return {path.name: open_checkpoint(str(path)).identity for path in sorted((folder / "models").iterdir())}


def write(folder: Path) -> None:
    """Write the file."""
    unpack(folder)
    rows = [
        {"call": " ".join(json.dumps(word) if " " in word or not word else word for word in call), "ids": found}
        for number, call in enumerate(CALLS)
        if (found := identities(call, folder, folder / str(number) / "store"))
    ]
    FILE.write_text(json.dumps({"contents": contents(folder), "calls": rows}, indent=1) + "\n", "utf-8")
