"""What the Hub lists, a page at a time, and what the watch leaves out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scanner.errors import CheckpointError
from scanner.fleet.config import Watch
from scanner.fleet.listing import list_releases, weight_bytes
from tests.checkpoint.sources.hub_server import Hub, Repository

from .releases import add

TASK = {"pipeline_tag": "text-generation"}


def many(hub: Hub, count: int, *, newest: datetime | None = None) -> None:
    """Repositories r0, r1, ... of one hour each, the newest first."""
    newest = newest or datetime.now(UTC)
    for number in range(count):
        hub.repositories[f"org/r{number}"] = Repository(
            branches={"main": f"{number:040x}"}, modified=newest - timedelta(hours=number), listed=dict(TASK)
        )


def names(watch: Watch, since: datetime | None = None) -> list[str]:
    return [one.repository for one in list_releases(watch, since=since).releases]


def test_two_thousand_repositories_are_listed_once_each(hub: Hub) -> None:
    many(hub, 2000)
    listed = list_releases(Watch(task="text-generation", since_hours=5000), since=None)
    assert [one.repository for one in listed.releases] == [f"org/r{number}" for number in range(2000)]
    assert (listed.count, listed.watermark) == (2000, listed.releases[0].last_modified)
    assert len(hub.seen("list")) == 20


def test_a_listing_ends_at_the_watermark_minus_the_overlap(hub: Hub) -> None:
    now = datetime.now(UTC)
    many(hub, 2000, newest=now)
    watch = Watch(task="text-generation", since_hours=10.5, overlap_hours=2)
    assert len(names(watch)) == 11
    assert names(watch, now - timedelta(hours=3.5)) == [f"org/r{number}" for number in range(6)]
    assert len(hub.seen("list")) == 2  # one page each
    soon = datetime.now(UTC)
    assert list_releases(watch, since=soon).watermark == soon  # it never goes back


def test_a_change_in_the_future_hides_nothing_that_follows(hub: Hub) -> None:
    many(hub, 2)
    hub.repositories["org/r0"].modified = datetime.now(UTC) + timedelta(days=365)
    watch = Watch(task="text-generation")
    first = list_releases(watch, since=None)
    assert [one.repository for one in first.releases] == ["org/r0", "org/r1"]
    asked = datetime.now(UTC)
    assert first.watermark is not None
    assert asked - timedelta(minutes=5) < first.watermark <= asked
    hub.commit("org/new", {})
    hub.repositories["org/new"].listed = dict(TASK)
    assert names(watch, first.watermark)[:2] == ["org/r0", "org/new"]


def test_a_listing_without_models_has_the_time_of_the_request_as_watermark(hub: Hub) -> None:
    before = datetime.now(UTC)
    watermark = list_releases(Watch(task="text-generation"), since=None).watermark
    assert watermark is not None
    assert before <= watermark <= datetime.now(UTC)
    assert list_releases(Watch(task="text-generation"), since=before).watermark == before
    hub.commit("a/one", {})
    assert list_releases(Watch(repositories=("a/one",)), since=None).watermark is None  # nothing was listed


def test_pushes_while_pages_are_listed_lose_and_double_nothing(hub: Hub) -> None:
    many(hub, 350)

    def push(page: int) -> None:
        # One that was listed moves to the front, which shifts all pages; one that was not listed yet does, too.
        for number in (page, 340 - page):
            repository = hub.repositories[f"org/r{number}"]
            repository.branches["main"] = f"{1000 + number + page:040x}"
            repository.modified = datetime.now(UTC) + timedelta(minutes=page)

    hub.after_page = push
    watch = Watch(task="text-generation", since_hours=5000)
    first = list_releases(watch, since=None)
    hub.after_page = lambda _: None
    keys = [one.key for one in first.releases]
    assert len(keys) == len({*keys})
    second = list_releases(watch, since=first.watermark)
    seen = {*keys, *(one.key for one in second.releases)}
    assert {(name, one.branches["main"]) for name, one in hub.repositories.items()} <= seen


def test_the_hub_is_asked_for_what_the_watch_says(hub: Hub) -> None:
    add(hub, "a/one")
    watch = Watch(
        authors=("a", "b"), search="o", task="text-generation", library="transformers", tags=("safetensors",),
        licenses=("apache-2.0",), min_parameters=100, max_parameters=10**6, gated="no",
    )  # fmt: skip
    assert names(watch) == ["a/one"]
    from urllib.parse import parse_qs, urlsplit

    asked = [parse_qs(urlsplit(request.path).query) for request in hub.seen("list")]
    assert [query["author"] for query in asked] == [["a"], ["b"]]
    assert asked[0]["filter"] == ["safetensors", "transformers", "license:apache-2.0"]
    assert {
        name: asked[0][name] for name in ("search", "pipeline_tag", "num_parameters", "gated", "sort", "limit")
    } == {
        "search": ["o"],
        "pipeline_tag": ["text-generation"],
        "num_parameters": ["min:100,max:1000000"],
        "gated": ["false"],
        "sort": ["lastModified"],
        "limit": ["100"],
    }
    assert {"sha", "safetensors", "cardData", "lastModified"} <= {*asked[0]["expand"]}


@pytest.mark.parametrize(
    ("watch", "left"),
    [
        ({"licenses": ("mit", "apache-2.0")}, ["org/apache"]),
        ({"max_parameters": 100}, ["org/small"]),
        ({"min_parameters": 101}, ["org/apache"]),
        ({"gated": "only"}, ["org/gated"]),
        ({"gated": "no", "exclude": ("*/SMALL", "org/un*")}, ["org/apache"]),
    ],
)
def test_models_that_do_not_fit_are_left_out(hub: Hub, watch: dict[str, Any], left: list[str]) -> None:
    def sized(count: int) -> dict[str, Any]:
        return {"safetensors": {"parameters": {"BF16": count}, "total": count}}

    many(hub, 0)
    for name, tags, more in (
        ("org/apache", ["license:apache-2.0"], sized(1000)),
        ("org/small", ["license:other"], sized(10)),
        ("org/unsized", [], {}),
        ("org/gated", [], {}),
    ):
        hub.commit(name, {})
        hub.repositories[name].listed = {**TASK, "tags": tags, **more}
        hub.repositories[name].gated = name.endswith("gated")
    found = list_releases(Watch(task="text-generation", **watch), since=None).releases
    assert [one.repository for one in found] == left
    if left == ["org/small"]:
        assert (found[0].parameters, found[0].bytes) == (10, 20)


@pytest.mark.parametrize(
    ("tags", "card", "base"),
    [
        (["base_model:org/base", "base_model:finetune:org/base"], {}, "org/base"),
        ([], {"base_model": "org/base"}, "org/base"),
        ([], {"base_model": ["org/base"]}, "org/base"),
        ([], {"base_model": ["org/base", "org/other"]}, None),
        (["base_model:adapter:org/base"], {"base_model": "org/base"}, None),
        ([], {"base_model": "org/base", "base_model_relation": "quantized"}, None),
        (["base_model:finetune:../../etc"], {}, None),
        ([], {"base_model": {"name": 1}}, None),
    ],
)
def test_the_base_is_the_one_model_of_a_fine_tune(hub: Hub, tags: list[str], card: Any, base: str | None) -> None:
    add(hub, "a/one", tags=tags, cardData=card)
    [found] = list_releases(Watch(task="text-generation"), since=None).releases
    assert found.base_model == base


def test_entries_that_are_no_models_are_left_out(hub: Hub) -> None:
    add(hub, "a/one")
    for number, entry in enumerate(
        (
            {"sha": "main"},
            {"id": "../x"},
            {"id": 3},
            {"lastModified": None},
            {"disabled": True},
            {"sha": None},
            {"id": "a b"},
        )
    ):
        add(hub, f"a/bad{number}", **entry)
    listed = list_releases(Watch(authors=("a",)), since=None)
    assert [one.repository for one in listed.releases] == ["a/one"]
    [told] = listed.problems
    assert told.startswith("6 entries of the list of models are not understood, such as ")  # and one is disabled
    add(
        hub,
        "a/odd",
        tags=[1, None],
        cardData="x",
        downloads=-1,
        pipeline_tag=5,
        safetensors={"parameters": {"F32": -5}, "total": "x"},
    )
    [odd, _] = list_releases(Watch(authors=("a",)), since=None).releases
    assert (odd.parameters, odd.bytes, odd.downloads, odd.task, odd.license) == (None, None, None, None, None)


@pytest.mark.parametrize(
    ("written", "parameters"),
    [
        ({"cardData": {"self": "x", "license": "mit"}}, 1000),
        ({"cardData": {"ignore_metadata_errors": True, "license": "mit"}}, 1000),
        ({"cardData": {"license": "mit", "model-index": "x"}}, 1000),
        ({"cardData": {"license": "mit"}, "safetensors": {"parameters": {"F32": 5}}}, 5),
        ({"cardData": {"license": "mit"}, "safetensors": {"total": 5}}, None),
        ({"cardData": {"license": "mit"}, "safetensors": 5}, None),
    ],
)
def test_what_is_written_on_a_card_hides_no_release(hub: Hub, written: dict[str, Any], parameters: int | None) -> None:
    size = {"parameters": {"F32": 1000}, "total": 1000}
    add(hub, "a/one", **{"tags": [], "safetensors": size, **written})
    listed = list_releases(Watch(authors=("a",)), since=None)
    assert [(one.repository, one.license, one.parameters) for one in listed.releases] == [("a/one", "mit", parameters)]
    assert listed.problems == ()


def test_listed_repositories_are_looked_up_and_one_that_is_missing_is_told(hub: Hub) -> None:
    commit = add(hub, "a/one")
    branch = hub.commit("a/one", {"model.safetensors": b"123"}, branch="dev")
    listed = list_releases(Watch(repositories=("a/one", "a/one@dev", "a/none")), since=None)
    assert [(one.commit, one.branch) for one in listed.releases] == sorted([(commit, "main"), (branch, "dev")])
    assert len(listed.problems) == 1
    assert "there is no model a/none" in listed.problems[0]
    assert not hub.seen("list")


def test_the_listing_does_not_follow_to_another_host(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    many(hub, 150)
    from tests.checkpoint.sources import hub_server

    monkeypatch.setattr(hub_server, "urlencode", lambda *_, **__: "> ; rel=x, <http://elsewhere.example/api/models")
    with pytest.raises(CheckpointError, match="elsewhere"):
        names(Watch(task="text-generation", since_hours=5000))


def test_of_several_formats_one_is_read() -> None:
    assert weight_bytes({"a.safetensors": 3, "b.safetensors": 4, "a.bin": 100, "README.md": 7}) == 7
    assert weight_bytes({"a.gguf": 5, "b.bin": 6}) == 6
    assert weight_bytes({"README.md": 7}) is None
    assert weight_bytes(None) is None
