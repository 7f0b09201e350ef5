"""Accuracy on a task of lm-evaluation-harness: it loads the task and scores the answers, which come from the model of the worker.

Multiple choice, loglikelihood and generation tasks with a metric per document that is averaged, the larger the better, can be
measured. The definition of a task may contain Python code, which the harness runs: use only tasks that you trust.

Source: https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.experiments.nlp.evaluation import Scores
from scanner.experiments.nlp.models import ModelPlace, load_tokenizer
from scanner.experiments.nlp.options import HARNESS
from scanner.experiments.nlp.tokens import Batches

_EXTRA = "pip install 'rmtscan[lm-eval]'"
#: Requests that are answered together.
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class HarnessTask:
    """A task of the harness as a measure: the mean of one metric over documents."""

    task: str
    folder: str | None
    """Where the task is defined; None: it comes with the harness."""
    limit: int | None
    """Largest number of documents; None: all."""
    score: str
    """The metric of the task."""
    units: int
    """Number of documents."""
    tokens: int
    """Number of tokens of the requests, without what is generated."""
    place: ModelPlace
    """Where the tokenizer is."""

    @property
    def metric(self) -> str:
        """`lm-eval:TASK`."""
        return HARNESS + self.task

    def prepare(self, model: Any, batches: Batches) -> tuple[Any, Any]:
        """Load the task and the tokenizer; the intact model is not needed."""
        return _load(self.task, self.folder), load_tokenizer(self.place)

    def scores(self, model: Any, prepared: tuple[Any, Any], batches: Batches) -> Scores:
        """Score each document.

        Raises:
            ScannerError: the harness scored other documents than when the run was planned.
        """
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        loaded, tokenizer = prepared
        with _quiet():
            adapter = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=_BATCH)
            found = evaluate(adapter, loaded, limit=self.limit, bootstrap_iters=0)
        samples = found["samples"][self.task]
        kept = [one for one in samples if one["filter"] == samples[0]["filter"]]
        kept.sort(key=lambda one: one["doc_id"])
        if len(kept) != self.units:
            raise ScannerError(
                f"task {printable(self.task)} has {len(kept)} documents here and had {self.units}: its data have changed"
            )
        return Scores(sums=np.array([float(one[self.score]) for one in kept]), weights=np.ones(self.units))


def harness_task(
    place: ModelPlace, tokenizer: Any, task: str, folder: str, limit: int | None
) -> tuple[HarnessTask, dict[str, object]]:
    """Return a task as a measure, and the parameters that identify it: its metric, and a hash of all requests.

    Args:
        place: the model.
        tokenizer: its tokenizer, which counts tokens.
        task: name of the task.
        folder: folder or file of its definition; empty: the task comes with the harness.
        limit: largest number of documents.

    Raises:
        ScannerError: the harness is not installed or has no such task, the task has no metric that can be compared, or the
            tokenizer has no token that ends a text.
    """
    where: str | None = None
    if folder:
        path = Path(folder).resolve()
        if not path.exists():
            raise ScannerError(
                f"{printable(folder)} does not exist: give the folder or file with the definition of the task"
            )
        where = str(path if path.is_dir() else path.parent)
    [loaded] = _load(task, where)["tasks"].values()
    score = _score(task, loaded)
    if tokenizer.eos_token_id is None:
        raise ScannerError(f"{printable(place.model)} has no token that ends a text, which lm-evaluation-harness needs")
    with _quiet():
        loaded.build_all_requests(limit=limit, rank=0, world_size=1)
    requests = loaded.instances
    content = hashlib.sha256()
    tokens = 0
    for request in requests:
        content.update(json.dumps([request.doc_id, request.request_type, request.args], default=str).encode())
        content.update(json.dumps(request.doc, sort_keys=True, default=str).encode())
        tokens += len(tokenizer(str(request.args[0]))["input_ids"])
    units = len({request.doc_id for request in requests})
    if not units:
        raise ScannerError(f"task {printable(task)} has no documents")
    measure = HarnessTask(task=task, folder=where, limit=limit, score=score, units=units, tokens=tokens, place=place)
    return measure, {"score": score, "examples": limit, "requests": content.hexdigest()[:16]}


def _score(task: str, loaded: Any) -> str:
    """Return the first metric of a task whose mean over documents is the larger the better."""
    better, aggregation = loaded.higher_is_better(), loaded.aggregation()
    for name, how in aggregation.items():
        if better.get(name) and getattr(how, "__name__", "") == "mean":
            return str(name)
    raise ScannerError(
        f"task {printable(task)} has no metric that is averaged over documents, the larger the better: "
        f"it has {', '.join(map(printable, aggregation)) or 'none'}"
    )


def _load(task: str, folder: str | None) -> Any:
    """Return the task as the harness loads it.

    Raises:
        ScannerError: the harness is not installed, or cannot load a single task of this name.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ScannerError(
            f"`metric` lm-eval:TASK needs lm-evaluation-harness, which is not installed: {_EXTRA}"
        ) from error
    try:
        with _quiet():
            loaded = TaskManager(include_path=folder, include_defaults=folder is None).load(task)
    except Exception as error:  # the harness and datasets raise errors of many types
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ScannerError(
            f"lm-evaluation-harness cannot load task {printable(task)}: {printable(text)[:300]}"
        ) from error
    if list(loaded["tasks"]) != [task]:
        raise ScannerError(
            f"{printable(task)} is not a single task: give one of {', '.join(map(printable, list(loaded['tasks'])[:20]))}"
        )
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the harness logs, and its progress bars."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
