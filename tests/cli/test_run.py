"""Runs of verbs: interruption, exit status and closing report; the verb of an experiment."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from scanner.cli.experiments import add_experiment
from scanner.cli.run import run_verb
from scanner.configuration import option
from scanner.engine import Observer, PoolOptions
from scanner.experiments import Experiment, Report
from scanner.store import open_store
from tests.store.rows import Matrix, add_scan


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The report of a verb."""

    store: str
    exit_status: int


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_verb_ends_with_the_status_of_its_report(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[Ended] = []
    ended = 0
    try:
        run_verb(lambda observer: Ended(store="s3://x", exit_status=status), shown.append, store="s3://x")
    except typer.Exit as end:
        ended = end.exit_code
    assert ended == status
    assert len(shown) == 1
    assert capsys.readouterr().err == "store: s3://x (0 s)\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_and_says_how_to_resume(how: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    # A shell starts background processes with SIGINT ignored, and Python then leaves it so.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)

    def call(observer: Observer) -> Ended:
        os.kill(os.getpid(), how)
        signal.pause()
        raise AssertionError("the signal interrupts")

    try:
        with pytest.raises(KeyboardInterrupt):
            run_verb(call, lambda report: None, store="results")
    finally:
        signal.signal(signal.SIGINT, inherited)
    told = capsys.readouterr().err
    assert told == "\ninterrupted: existing results are kept in results; the same command resumes\n"
    assert signal.getsignal(signal.SIGTERM) is before


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the toy."""

    model: str = option(positional=True, metavar="REF")
    """A model."""
    seeds: int = option(3, min=1)
    """Number of seeds."""


def never(config: Config, call: object) -> Any:
    raise AssertionError("the toy is not planned")


def test_the_verb_of_an_experiment_follows_from_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    add_scan(open_store(store, create=True), "abc", [Matrix()], model="org/one")
    received: list[Any] = []

    def run(
        _: Experiment[Config], config: Config, *, store: str, pool: PoolOptions, force: bool, observer: Observer
    ) -> Report:
        received.append((config, pool, force))
        return Report(
            store=store,
            run_ids=("abc",),
            unit="points",
            total=3,
            kept=1,
            failed={"seed0": "no\x1bmemory"},
            notes=("two of three",),
            parameters={"model": "org/one"},
        )

    app = typer.Typer()
    toy = Experiment(name="toy", config=Config, plan=never, query="scans", help="Measure a toy.")
    add_experiment(app, toy, run)
    with pytest.raises(SystemExit) as end:
        app(["m", "--seeds", "2", "--workers", "1", "--force", "--store", store, "--format", "csv"])
    out, err = capsys.readouterr()
    assert end.value.code == 3
    assert received == [(Config(model="m", seeds=2), PoolOptions(workers=1), True)]
    assert "org/one" in out
    assert err.splitlines()[:3] == [
        r"  FAILED seed0: no\x1bmemory",
        "two of three",
        "run abc: 3 points, 1 of them from earlier runs, 1 failed",
    ]
