"""Nights on a real Ray, from a Hub on loopback into a real store."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from scanner.checkpoint.sources.hub_files import hub_files
from scanner.engine.options import PoolOptions
from scanner.engine.work import Observer
from scanner.errors import CheckpointError, RateLimitedError
from scanner.fleet import nightly
from scanner.fleet.backfill import outdated_scans, upgrade
from scanner.fleet.plan import Plan
from scanner.rmt import vocabulary
from scanner.store import Store, open_store
from scanner.store.files import StoreFiles
from scanner.store.lease import lease
from tests.checkpoint.sources.hub_server import Fault, Hub
from tests.engine.checkpoints import tensors
from tests.golden import command

from .conftest import Run
from .releases import add, config

scanning = importlib.import_module("scanner.engine.scan")


def states(store: Store, **where: Any) -> dict[str, str]:
    """Repository and first digits of the commit to the newest state."""
    return {row["repository"]: row["state"] for row in store.query("releases", **where).to_pylist()}


def opened(folder: Path) -> Store:
    return open_store(str(folder / "store"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_night_scans_what_is_new_and_a_second_run_does_nothing(night_hub: Hub, night: Run, tmp_path: Path) -> None:
    commits = {name: add(night_hub, name, seed) for seed, name in enumerate(("one/a", "one/b"))}
    add(night_hub, "other/c", 3)
    first = night("one")
    assert (first.exit_status, first.nothing) == (0, False)
    store = opened(tmp_path)
    scans = store.sql("select model, revision, matrices from scans order by model").to_pylist()
    assert [(row["model"], row["revision"], row["matrices"]) for row in scans] == [
        (name, commit, 4) for name, commit in commits.items()
    ]
    assert states(store) == {"one/a": "scanned", "one/b": "scanned"}
    assert all(found.state == "whole" for found in store.verify())
    before = snapshot(tmp_path)
    assert night("one").nothing
    assert snapshot(tmp_path) == before


def test_budgets_leave_releases_waiting_for_the_next_night(night_hub: Hub, night: Run, tmp_path: Path) -> None:
    for number, name in enumerate(("two/old", "two/new")):
        add(night_hub, name, 10 + number)
    add(night_hub, "two/huge", 12, safetensors={"parameters": {"F32": 10**12}, "total": 10**12})
    add(night_hub, "two/unsized", 13, safetensors=None)
    budget = 'models = 1\nbytes = "1 TB"'
    nothing = night("two", budget=budget, dry_run=True)
    assert [entry.release.repository for entry in nothing.planned] == ["two/unsized"]
    assert not (tmp_path / "store").exists()
    night("two", budget=budget)
    store = opened(tmp_path)
    assert states(store) == {
        "two/old": "waiting",
        "two/new": "waiting",
        "two/huge": "waiting",
        "two/unsized": "scanned",
    }
    [unsized] = store.query("releases", repository="two/unsized").to_pylist()
    assert unsized["bytes"] == len(
        night_hub.repositories["two/unsized"].commits[unsized["commit"]]["model.safetensors"]
    )
    assert night("two", budget=budget).nothing  # the same night, whose budget is used
    [huge] = store.query("releases", repository="two/huge").to_pylist()
    assert "larger than the budget of a whole night (bytes, hours)" in huge["reason"]
    [row] = store.query("nights").to_pylist()
    assert row["watermark"] == max(one["last_modified"] for one in store.query("releases").to_pylist())
    # The next night takes the next one, and gives up what has waited too long.
    report = night("two", budget=budget, night="length_hours = 0\nkeep_waiting_days = 0", dry_run=True)
    assert [entry.release.repository for entry in report.planned] == ["two/new"]
    assert {one.repository: one.state for one in report.releases if one.state == "skipped"} == {
        "two/huge": "skipped",
        "two/old": "skipped",
    }


def test_a_failed_listing_is_one_error_and_the_watermark_stays(night_hub: Hub, night: Run, tmp_path: Path) -> None:
    add(night_hub, "three/a", 20)
    refused = "limits requests and refused the list of models of three: try again in 3600 s"
    no_list: dict[str, Any] = {"body": b'{"error": 1}', "headers": {"Content-Type": "application/json"}}
    for fault, error, told in (
        (Fault("list", times=1, status=429, headers={"Retry-After": "3600"}), RateLimitedError, refused),
        (Fault("list", times=10, status=500), CheckpointError, "status 500 for the list of models"),
        (Fault("list", status=200, **no_list), CheckpointError, "is not that of a Hub"),
    ):
        night_hub.faults = [fault]
        with pytest.raises(error, match=told):
            night("three")
    night_hub.faults = []
    assert opened(tmp_path).query("nights").num_rows == 0
    night_hub.faults = [Fault("list", times=2, status=429, headers={"Retry-After": "7"}), Fault("list", cut=20)]
    report = night("three", dry_run=True)
    assert [entry.release.repository for entry in report.planned] == ["three/a"]
    assert night_hub.waits[-3] >= 7


def test_releases_that_change_after_the_listing_do_not_stop_the_others(
    night_hub: Hub, night: Run, tmp_path: Path
) -> None:
    commits = {name: add(night_hub, f"four/{name}", 30 + n) for n, name in enumerate("abcde")}
    files = night_hub.repositories["four/e"].commits[commits["e"]]
    files["model.safetensors"] = b"broken"

    def change(page: int) -> None:
        night_hub.after_page = lambda _: None
        add(night_hub, "four/a", 39)  # a push: the commit that was listed is scanned
        night_hub.rename("four/b", "four/renamed")
        night_hub.delete("four/c")
        night_hub.repositories["four/d"].gated = True

    night_hub.after_page = change
    report = night("four")
    found = {one.repository: one for one in report.releases}
    assert {name: one.state for name, one in found.items()} == {
        "four/a": "scanned",
        "four/b": "scanned",
        "four/c": "skipped",
        "four/d": "skipped",
        "four/e": "failed",
    }
    assert found["four/a"].commit == commits["a"]
    assert "gated" in str(found["four/d"].reason)
    assert report.exit_status == 3
    # The push and the new name are found now; the same commit is not scanned twice.
    again = night("four", dry_run=True)
    assert [entry.release.repository for entry in again.planned] == ["four/a"]
    assert again.planned[0].release.commit != commits["a"]
    store = opened(tmp_path)
    assert store.sql("select count(*) as n from scans").to_pylist() == [{"n": 2}]
    # A failure of the content is not tried again, one of the network is, in later nights and not for ever.
    assert store.query("releases", repository="four/e")["attempts"].to_pylist() == [1]


def test_a_failure_that_may_pass_is_tried_again_in_later_nights(night_hub: Hub, night: Run, tmp_path: Path) -> None:
    add(night_hub, "five/a", 40)
    states = []
    for _ in range(3):
        night_hub.faults = [Fault("resolve", times=1000, status=503)]
        report = night("five", night="length_hours = 0\nattempts = 3")
        states += [(one.state, one.attempts) for one in report.releases]
        assert (report.exit_status, report.failed) == (3, 1)
    assert states == [("waiting", 1), ("waiting", 2), ("failed", 3)]
    night_hub.faults = []
    assert night("five", night="length_hours = 0").nothing
    add(night_hub, "five/b", 41)
    night_hub.faults = [Fault("resolve", times=1000, status=503)]
    night("five")
    night_hub.faults = []
    assert night("five").nothing  # not in the same night
    assert len(night("five", night="length_hours = 0", dry_run=True).planned) == 1


def test_a_release_is_compared_with_its_base_which_is_scanned_once(night_hub: Hub, night: Run, tmp_path: Path) -> None:
    base = tensors(layers=1, hidden=16, seed=50)
    tuned = {name: tensor + 0.01 * torch.ones_like(tensor) for name, tensor in base.items()}
    base_commit = add(night_hub, "makers/base", weights=base)
    add(night_hub, "six/tuned", weights=tuned, tags=["base_model:makers/base", "base_model:finetune:makers/base"])
    add(night_hub, "six/quant", 53, tags=["base_model:makers/base", "base_model:quantized:makers/base"])
    add(night_hub, "six/lost", 54, cardData={"base_model": "makers/none"})
    report = night("six")
    found = {one.repository: one for one in report.releases}
    assert {one.state for one in found.values()} == {"scanned"}
    assert found["six/tuned"].base_commit == base_commit
    assert found["six/quant"].pair_id is None
    assert "its base cannot be read: there is no model makers/none" in str(found["six/lost"].reason)
    store = opened(tmp_path)
    pairs = store.sql("select base_model, tuned_model from comparisons").to_pylist()
    assert pairs == [{"base_model": "makers/base", "tuned_model": "six/tuned"}]
    # The base has moved on: a later fine-tune is compared with the commit that was scanned.
    add(night_hub, "makers/base", 55)
    add(night_hub, "six/later", 56, tags=["base_model:finetune:makers/base"])
    [entry] = night("six", dry_run=True).planned
    assert entry.base is not None
    assert (entry.base.commit, entry.base.scanned) == (base_commit, True)
    assert len(store.query("scans", model="makers/base")) == 1


def test_a_night_that_is_killed_continues(
    night_hub: Hub, night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        add(night_hub, f"seven/{number}", 60 + number)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # The second run tries both alone, and records each before the next.
    for place, recorded in (("_work", {"planned"}), ("_finish", {"planned", "scanned"})):
        with monkeypatch.context() as patch:
            patch.setattr(nightly._Run, place, stop)
            with pytest.raises(KeyboardInterrupt):
                night("seven")
        store = opened(tmp_path)
        [row] = store.query("nights").to_pylist()
        assert row["state"] == "planned"
        assert {*states(store).values()} == recorded
    with monkeypatch.context() as patch:
        patch.setattr(nightly, "write_digest", stop)
        with pytest.raises(KeyboardInterrupt):
            night("seven")
    scans = snapshot(tmp_path / "store" / "scans")
    assert len(scans) == 2
    report = night("seven")
    assert report.digest is not None
    assert snapshot(tmp_path / "store" / "scans") == scans
    [row] = store.query("nights").to_pylist()
    assert (row["state"], row["scanned"], row["new"]) == ("done", 2, 2)
    assert night("seven").nothing


def test_a_release_that_ends_the_run_is_tried_alone_and_given_up(
    night_hub: Hub, night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(night_hub, "twelve/poison", 100)
    add(night_hub, "twelve/first", 101)
    real, calls = scanning.scan, list[int]()

    def crashes(references: list[str], **options: Any) -> Any:
        calls.append(len(references))
        if any("poison" in reference for reference in references):
            raise ZeroDivisionError("like a process that is killed")
        return real(references, **options)

    monkeypatch.setattr(scanning, "scan", crashes)
    following = "length_hours = 0\nattempts = 3"
    with pytest.raises(ZeroDivisionError):
        night("twelve", night=following)
    store = opened(tmp_path)
    assert states(store) == {"twelve/poison": "planned", "twelve/first": "planned"}
    add(night_hub, "twelve/new", 102)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            night("twelve", night=following)
        if states(store)["twelve/first"] == "scanned":
            break
    assert states(store)["twelve/new"] == "scanned"
    while states(store)["twelve/poison"] == "planned":
        assert len(calls) < 12
        try:
            report = night("twelve", night=following)
        except ZeroDivisionError:
            continue
    assert states(store) == {"twelve/poison": "failed", "twelve/first": "scanned", "twelve/new": "scanned"}
    assert (report.exit_status, report.failed) == (3, 1)
    assert "the run ended 3 times while it was at work" in Path(str(report.digest)).read_text()
    assert night("twelve", night=following).nothing


def test_a_night_that_is_interrupted_counts_no_attempt_and_its_time(
    night_hub: Hub, night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(night_hub, "thirteen/a", 110)
    real = scanning.scan

    def interrupted(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise KeyboardInterrupt

    for _ in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(scanning, "scan", interrupted)
            patch.setattr(nightly._Run, "outcome", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                night("thirteen")
        [row] = opened(tmp_path).query("releases").to_pylist()
        assert (row["state"], row["attempts"]) == ("waiting", 0)
    [interrupted_night] = opened(tmp_path).query("nights").to_pylist()
    assert (interrupted_night["state"], interrupted_night["seconds"] > 0) == ("planned", True)
    night("thirteen")
    assert states(opened(tmp_path)) == {"thirteen/a": "scanned"}
    [done] = opened(tmp_path).query("nights").to_pylist()
    assert done["seconds"] > interrupted_night["seconds"]


def test_a_run_that_is_killed_has_used_its_hours(
    night_hub: Hub, night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(night_hub, "fourteen/a", 120)

    def killed(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(nightly, "_RECORD_SECONDS", -1.0)
    # After the scan: how many tasks it is divided into, and so whether one is done before its end, depends on the machine.
    monkeypatch.setattr(nightly._Run, "_compare", killed)
    with pytest.raises(ZeroDivisionError):
        night("fourteen")
    [row] = opened(tmp_path).query("nights").to_pylist()
    assert row["seconds"] > 0


def test_everything_that_an_observer_is_told_is_passed_on() -> None:
    class Told(Observer):
        def __getattribute__(self, name: str) -> Any:
            return name if name in vars(Observer) and not name.startswith("_") else super().__getattribute__(name)

    run: Any = SimpleNamespace(observer=Told(), check=lambda: None)
    watcher = nightly._Watcher(run, cast("Any", None), Plan(), None)
    methods = {name for name in vars(Observer) if not name.startswith("_")}
    assert {"note", "expecting", "hashing"} <= methods
    passed = {name for name in methods if getattr(watcher, name) == name}
    assert methods - passed == {"task_done", "model_done"}  # which the nightly scan needs, too


def test_scans_of_an_earlier_method_are_computed_again(
    night_hub: Hub, night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(night_hub, "eight/a", 70)
    add(night_hub, "eight/b", 71)
    night("eight", method='roles = ["query"]')
    store = opened(tmp_path)
    assert outdated_scans(store) == []
    monkeypatch.setattr(vocabulary, "METHOD_VERSION", vocabulary.METHOD_VERSION + 1)
    old = outdated_scans(store)
    assert {(one.model, one.version, one.method.selection.only) for one in old} == {
        ("eight/a", 1, ("query",)),
        ("eight/b", 1, ("query",)),
    }
    # A night upgrades one, because its share is a tenth of the budget; the command upgrades what is left, as it was scanned.
    share = night("eight", budget="models = 10\nupgrade_share = 0.1", night="length_hours = 0")
    assert (share.upgraded, share.exit_status, len(outdated_scans(store))) == (1, 0, 1)
    report = upgrade(store, pool=PoolOptions(workers=1))
    assert [(one.new, one.analyzed, one.error) for one in report.models] == [(True, 1, None)]
    assert outdated_scans(store) == []
    assert upgrade(store).models == ()
    versions = store.sql("select model, method ->> '$.version' as v from scans order by all").to_pylist()
    assert [(row["model"], row["v"]) for row in versions] == [(f"eight/{x}", v) for x in "ab" for v in "12"]


def test_a_scan_that_cannot_be_computed_again_takes_no_place_and_is_told(
    night_hub: Hub, night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(night_hub, "fifteen/a", 130)
    night("fifteen", method='roles = ["query"]')
    add(night_hub, "fifteen/gone", 131)
    night("fifteen", method='roles = ["query"]')
    monkeypatch.setattr(vocabulary, "METHOD_VERSION", vocabulary.METHOD_VERSION + 1)
    store = opened(tmp_path)
    assert [one.model for one in outdated_scans(store)] == ["fifteen/gone", "fifteen/a"]
    night_hub.delete("fifteen/gone")
    hub_files.cache_clear()  # of this process, which would not ask again where the file is
    one = {"budget": "models = 10\nupgrade_share = 0.1", "night": "length_hours = 0\nattempts = 2"}
    first = night("fifteen", **one)
    assert (first.upgraded, first.failed, first.exit_status) == (0, 1, 3)
    assert first.summary.endswith("1 not upgraded")
    failed = json.loads(Path(str(first.digest)).with_suffix(".json").read_text())["failed"]
    assert [row["repository"] for row in failed] == ["fifteen/gone"]
    assert "its scan of an earlier method could not be computed again: there is no" in failed[0]["reason"]
    second = night("fifteen", **one)
    assert (second.upgraded, second.exit_status) == (1, 0)
    assert night("fifteen", **one).failed == 1  # its second night
    assert night("fifteen", **one).nothing


def test_the_command_ends_with_the_status_of_the_night(
    night_hub: Hub, night: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "watch.toml"

    def run(*arguments: str) -> tuple[int, str, str]:
        printed = command.run("nightly", *arguments)
        return printed.status, printed.out.decode(), printed.err

    status, _, err = run("--init", str(file))
    assert (status, file.is_file()) == (0, True)
    assert run("--init", str(file))[0] == 1  # nothing is overwritten
    add(night_hub, "nine/a", 80)
    file.write_text(config("nine", tmp_path))
    status, out, err = run("--config", str(file), "--dry-run", "--format", "json")
    assert (status, [row["state"] for row in json.loads(out)]) == (0, ["planned"])
    assert "nightly: 1 releases and 0 upgrades planned: " in err
    with lease(StoreFiles(str(tmp_path / "store")), "nightly", doing="scanned for the night"):
        status, _, err = run("--config", str(file))
    assert (status, err.count("is being scanned for the night by process")) == (1, 1)
    status, out, err = run(str(file))
    assert (status, err.splitlines()[-2]) == (0, "nightly: 1 scanned, 0 failed, 0 to try again, 0 skipped, 0 waiting")
    status, out, err = run(str(file))
    assert (status, out) == (0, "")
    assert "nightly: nothing to do: no new release, 0 waiting" in err
    file.write_text("[watch]\nauthors = 3\n")
    status, _, err = run(str(file))
    assert (status, err.count("\n")) == (1, 1)
    assert "[watch] authors must be a list of texts, got 3" in err
    printed = command.run("scan", "--upgrade", "--store", str(tmp_path / "store"))
    assert (printed.status, "no scan of an earlier method" in printed.err) == (0, True)
    assert command.run("scan").status == command.run("scan", "x", "--upgrade").status == 2
