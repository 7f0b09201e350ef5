"""Structured logs: every line on stderr is a JSON object, whatever happens; text stays the default."""

from __future__ import annotations

import inspect
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from scanner.cli import logs
from scanner.cli.main import _show_warning, main
from scanner.cli.run import run_verb
from scanner.engine.report import ModelReport
from scanner.engine.work import Observer
from scanner.errors import StoreWarning

HOSTILE = 'a\nerror: \x1b[31mfake\u2028 {"event": 1}'


class Done:
    """A report of finished work."""

    store, exit_status = "results", 0


def objects(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    for event in found:
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
        assert event["level"] in {"info", "warning", "error"}
        assert isinstance(event["event"], str)
    return found


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return ended.value.code


def missing(tmp_path: Path, *more: str) -> list[str]:
    return ["scan", str(tmp_path / "missing"), "--store", str(tmp_path / "store"), *more]


@pytest.mark.parametrize("how", ["option", "variable"])
def test_errors_and_summary_are_objects(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv(logs.VARIABLE, "json")
    assert run(*missing(tmp_path, *(["--log-format", "json"] if how == "option" else []))) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    events = objects(printed.err)
    assert [event["event"] for event in events] == ["opening", "model_error", "summary"]
    assert events[1]["level"] == "error"
    assert "missing" in events[1]["error"]
    assert events[2]["exit_status"] == 1


def test_text_is_the_default_and_an_option_wins_over_the_variable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*missing(tmp_path)) == 1
    text = capsys.readouterr().err
    assert text.startswith("reading ")
    monkeypatch.setenv(logs.VARIABLE, "json")
    assert run(*missing(tmp_path, "--log-format", "text")) == 1
    assert capsys.readouterr().err.splitlines()[:2] == text.splitlines()[:2]


def test_an_unknown_format_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*missing(tmp_path, "--log-format", "xml")) == 2
    assert "--log-format" in capsys.readouterr().err


def test_an_error_of_the_command_is_an_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(logs.VARIABLE, "json")
    assert run("query", "scans", "--store", str(tmp_path / "none")) == 1
    [event] = objects(capsys.readouterr().err)
    assert (event["event"], event["level"]) == ("error", "error")
    assert not event["message"].startswith("error")


def test_an_interrupted_run_ends_with_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    def call(_: Observer) -> Done:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_verb(call, print, store="results", log_format="json")
    [event] = objects(capsys.readouterr().err)
    assert (event["event"], event["store"]) == ("interrupted", "results")
    logs.use("text")


def test_hostile_names_are_values_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    events = logs.Events()
    events.opening(HOSTILE)
    events.hung([HOSTILE], 3.0)
    events.model_done(ModelReport(reference=HOSTILE, model=HOSTILE, analyzed=3, failed=1))
    text = capsys.readouterr().err
    assert text.isascii()
    told = objects(text)
    assert [event["event"] for event in told] == ["opening", "hung", "model_done"]
    assert told[0]["reference"] == told[1]["tasks"][0] == told[2]["model"] == HOSTILE
    assert told[2]["level"] == "warning"


def test_notes_and_warnings_are_objects_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.use("json")
    try:
        logs.say("  3 skipped: too small")
        _show_warning(StoreWarning("a file is damaged: scan with `force`"), StoreWarning)
    finally:
        logs.use("text")
    note, warning = objects(capsys.readouterr().err)
    assert (note["event"], note["message"]) == ("note", "3 skipped: too small")
    assert (warning["level"], warning["message"]) == ("warning", "a file is damaged: scan with --force")


def test_progress_knows_of_checkpoints_that_were_opened_later(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_INTERVAL", 0.0)

    class Task:
        name, items, cost, family, time_limit = "scan/1", 25, 25.0, None, None

    events = logs.Events()
    events.starting(20, 20.0, 0)
    events.expecting(100, 100.0, 3, more=True)
    events.task_done(Task(), failed=[])  # type: ignore[arg-type]
    events.expecting(200, 200.0, 3, more=False)
    events.task_done(Task(), failed=[])  # type: ignore[arg-type]
    told = objects(capsys.readouterr().err)
    assert [event["event"] for event in told] == ["starting", "expecting", "progress", "expecting", "progress"]
    assert told[1] == told[1] | {"items": 100, "kept": 3, "more": True}
    assert told[2] == told[2] | {"done": 25, "items": 100, "more": True, "share_of_cost": 0.25}
    assert told[4] == told[4] | {"done": 50, "items": 200, "more": False, "share_of_cost": 0.25}


#: A value for every parameter of the methods of an observer.
VALUES: dict[str, Any] = {
    **dict.fromkeys(("reference", "problem", "reason", "text"), HOSTILE),
    **dict.fromkeys(("items", "kept", "alive", "wanted"), 1),
    **dict.fromkeys(("models", "tasks"), (HOSTILE,)),
    **dict.fromkeys(("cost", "seconds"), 1.0),
    "more": True,
    "failed": [],
    "model": ModelReport(reference=HOSTILE),
}


@pytest.mark.parametrize("name", [name for name in vars(Observer) if not name.startswith("_")])
def test_whatever_an_observer_is_told_is_an_object(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Task:
        name, items, cost, family, time_limit = HOSTILE, 1, 1.0, None, None

    monkeypatch.setattr(logs, "_INTERVAL", 0.0)
    method = getattr(logs.Events(), name)
    parameters = inspect.signature(method).parameters.values()
    positional = [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty]
    named = {one.name: VALUES[one.name] for one in parameters if one.kind is one.KEYWORD_ONLY}
    method(*(Task() if name == "task_done" else VALUES[one.name] for one in positional), **named)
    [event] = objects(capsys.readouterr().err)
    about = {one.name for one in positional} - {"task", "cost", "model"}
    shown = json.dumps(event)
    assert all(json.dumps(VALUES[one]) in shown for one in about)


def test_lost_workers_and_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_INTERVAL", 0.0)

    class Task:
        name, items, cost, family, time_limit = "scan/1", 2, 5.0, None, None

    events = logs.Events()
    events.starting(4, 10.0, 1)
    events.workers(2, 2)
    events.workers(1, 2)
    events.task_done(Task(), failed=["x"])  # type: ignore[arg-type]
    told = objects(capsys.readouterr().err)
    assert [event["event"] for event in told] == ["starting", "workers", "worker_lost", "failed", "progress"]
    assert told[4] == told[4] | {"done": 2, "items": 4, "failed": 1, "share_of_cost": 0.5}
