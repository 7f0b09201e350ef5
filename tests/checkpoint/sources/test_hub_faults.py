import os
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.checkpoint import open_checkpoint
from scanner.checkpoint.sources.files import open_files
from scanner.checkpoint.sources.retry import MAX_RETRY_AFTER, MAX_TRIES, MAX_WAIT, retry_after
from scanner.errors import CheckpointError, GatedError, MissingError, RateLimitedError

from .hub_fixtures import WHOLE, check_tensors, part
from .hub_server import TOKEN, Fault, Hub

# ---- faults that pass


@pytest.mark.parametrize("kind", ["api", "resolve", "storage"])
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_fails_twice_is_asked_again(hub: Hub, single: str, kind: str, status: int) -> None:
    hub.faults = [Fault(kind, times=2, status=status)]
    check_tensors(open_checkpoint("org/name"))
    assert len(hub.waits) == 2
    assert hub.waits[0] < hub.waits[1]


@pytest.mark.parametrize("kind", ["api", "resolve", "storage"])
@pytest.mark.parametrize(
    "headers", [{"Retry-After": "37"}, {"RateLimit": '"api";r=0;t=37', "Retry-After": "1"}], ids=["retry", "limit"]
)
def test_as_long_as_the_server_asks_is_waited(hub: Hub, single: str, kind: str, headers: dict[str, str]) -> None:
    hub.faults = [Fault(kind, status=429, headers=headers)]
    check_tensors(open_checkpoint("org/name"))
    assert len(hub.waits) == 1
    assert 37 <= hub.waits[0] < 40


def test_a_connection_cut_in_the_body_is_continued_where_it_was_cut(hub: Hub, single: str) -> None:
    files = open_files(f"hf://org/name@{single}")
    assert files.size("model.safetensors") == len(WHOLE)
    hub.faults = [Fault("storage", times=2, cut=100_000)]
    assert part(single) == WHOLE[5_000:305_000]
    starts = [int(request.headers["range"][6:].split("-")[0]) for request in hub.seen("storage")]
    assert starts == [5_000, 105_000, 205_000]
    assert sum(request.sent for request in hub.seen("storage")) == 300_000


def test_a_long_read_survives_more_cuts_than_a_short_one_may_have(hub: Hub) -> None:
    body = os.urandom(16 * 2**20)
    commit = hub.commit("org/name", {"model.safetensors": body})
    hub.faults = [Fault("storage", times=2 * MAX_TRIES, cut=1_100_000)]
    assert part(commit, 0, len(body)) == body
    assert len(hub.seen("storage")) == 2 * MAX_TRIES + 1


def test_a_body_shorter_than_promised_is_continued(hub: Hub, single: str) -> None:
    hub.faults = [Fault("storage", times=2, short=1000)]
    assert part(single) == WHOLE[5_000:305_000]


def test_a_slow_server_is_waited_for_and_a_stuck_one_is_asked_again(
    hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    hub.faults = [Fault("storage", slow=0.1)]
    assert part(single) == WHOLE[5_000:305_000]
    assert len(hub.seen("storage")) == 1
    hub.faults = [Fault("storage", slow=1.5)]
    assert part(single) == WHOLE[5_000:305_000]
    assert len(hub.seen("storage")) == 3


# ---- faults that stay


@pytest.mark.parametrize("fault", [{"short": 0}, {"short": 1000}, {"cut": 0}, {"cut": 1000}, {"status": 503}])
def test_tries_end_and_say_what_happened(hub: Hub, single: str, fault: dict[str, Any]) -> None:
    hub.faults = [Fault("storage", times=99, **fault)]
    with pytest.raises(CheckpointError, match=r"model\.safetensors of org/name") as caught:
        part(single)
    assert "localhost" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(hub.seen("storage")) == MAX_TRIES
    assert sum(hub.waits) < MAX_WAIT


@pytest.mark.parametrize("kind", ["api", "resolve", "storage"])
def test_a_limit_that_lasts_says_when_to_try_again(hub: Hub, single: str, kind: str) -> None:
    hub.faults = [Fault(kind, times=99, status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(RateLimitedError, match="try again in 3600 s"):
        open_checkpoint("org/name")
    assert hub.waits == []
    hub.faults = [Fault(kind, times=99, status=429)]
    with pytest.raises(RateLimitedError, match="try again in some minutes"):
        open_checkpoint("org/name")
    assert len(hub.waits) == MAX_TRIES - 1


NONSENSE = {
    "a year without end": {"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
    "a day that is none": {"Retry-After": "Mon, 99 Jan 2026 00:00:00 GMT"},
    "a time before all times": {"Retry-After": "Mon, 01 Jan 0001 00:00:00 +2359"},
    "many seconds": {"Retry-After": "9" * 400},
    "a limit of many seconds": {"RateLimit": '"api";r=0;t=' + "9" * 400},
    "words": {"Retry-After": "soon\x1b[31m"},
}


@pytest.mark.parametrize("kind", ["api", "resolve", "storage"])
@pytest.mark.parametrize("headers", NONSENSE.values(), ids=NONSENSE)
def test_a_server_that_talks_nonsense_about_waiting_is_limited_like_any_other(
    hub: Hub, single: str, kind: str, headers: dict[str, str]
) -> None:
    hub.faults = [Fault(kind, times=99, status=429, headers=headers)]
    with pytest.raises(RateLimitedError, match=r"try again in (some minutes|86400 s)") as caught:
        open_checkpoint("org/name")
    assert str(caught.value).isprintable()
    assert sum(hub.waits) < MAX_WAIT


@pytest.mark.parametrize("kind", ["api", "resolve", "storage"])
@pytest.mark.parametrize(
    "headers",
    [
        {"RateLimit": '"api";r=0;t=' + "9" * 5000},
        {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"w";"api";q=' + "9" * 5000 + ";w=1"},
    ],
    ids=["limit", "policy"],
)
def test_more_digits_than_python_reads_are_one_error(hub: Hub, single: str, kind: str, headers: dict[str, str]) -> None:
    hub.faults = [Fault(kind, times=99, status=429, headers=headers)]  # which the client itself cannot read
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("org/name")
    assert str(caught.value).isprintable()
    assert hub.waits == []


class Answer(Exception):
    """An error as the clients of stores raise it."""

    def __init__(self, **headers: str) -> None:
        super().__init__()
        self.status, self.headers = 429, headers


@settings(max_examples=300)
@given(text=st.text() | st.from_regex(r"(Mon, )?\d{1,30} (Jan|Feb) \d{1,30} \d+:\d+(:\d+)? ?([+-]\d{1,9}|GMT)?"))
def test_whatever_a_server_says_it_is_a_time_or_none(text: str) -> None:
    for name in ("Retry-After", "RateLimit"):
        found = retry_after(Answer(**{name: text}))
        assert found is None or 0 <= found <= MAX_RETRY_AFTER


def test_a_large_file_sent_whole_instead_of_a_range_is_refused_unread(hub: Hub, single: str) -> None:
    hub.faults = [Fault("storage", times=99, whole=True)]
    with pytest.raises(CheckpointError, match=r"whole files instead \(download\)"):
        part(single)
    assert len(hub.seen("storage")) == 1


def test_a_small_file_may_be_sent_whole(hub: Hub) -> None:
    body = os.urandom(50_000)
    commit = hub.commit("org/name", {"model.safetensors": body})
    hub.faults = [Fault("storage", times=1, whole=True, cut=20_000), Fault("storage", times=99, whole=True)]
    assert part(commit, 1234, 30_000) == body[1234:31_234]


@pytest.mark.parametrize("fault", [{"shift": 8}, {"shift": -8}, {"gzip": True}, {"status": 204}, {"status": 206}])
def test_an_answer_with_something_else_is_refused(hub: Hub, single: str, fault: dict[str, Any]) -> None:
    hub.faults = [Fault("storage", times=99, **fault)]
    with pytest.raises(CheckpointError, match="was asked for bytes 5000-304999 and answers with"):
        part(single)
    assert len(hub.seen("storage")) == 1


@pytest.mark.parametrize(
    "now", [WHOLE[:100_000], WHOLE[:4_000], WHOLE + b"more"], ids=["shorter", "shortest", "longer"]
)
def test_a_file_of_another_size_than_before_is_refused(hub: Hub, single: str, now: bytes) -> None:
    files = open_files(f"hf://org/name@{single}")
    assert files.names()
    hub.repositories["org/name"].commits[single]["model.safetensors"] = now
    with pytest.raises(CheckpointError, match=r"was asked for|answers with status 416"):
        part(single)
    assert len(hub.seen("storage")) == 1


def test_gated_missing_and_limited_are_different_errors(hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/name"].gated = True
    with pytest.raises(
        GatedError, match=rf"^org/name is gated: accept its terms at {hub.endpoint}/org/name and set HF_TOKEN"
    ):
        open_checkpoint("org/name")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(GatedError, match="is gated"):
        open_checkpoint("org/name")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_tensors(open_checkpoint("org/name"))
    with pytest.raises(MissingError, match="there is no model org/nothing on"):
        open_checkpoint("hf://org/nothing")
    with pytest.raises(MissingError, match="no branch, tag or commit 'v9'"):
        open_checkpoint("org/name@v9")
    with pytest.raises(MissingError, match=r"other\.gguf"):
        open_checkpoint("org/name/other.gguf")
    with pytest.raises(MissingError, match="no branch, tag or commit '0000000"):
        open_checkpoint("org/name@" + "0" * 40)


def test_a_private_model_is_missing_for_others(hub: Hub, single: str) -> None:
    hub.repositories["org/name"].private = True
    with pytest.raises(MissingError, match="or it is private"):
        open_checkpoint("org/name")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"id": 3}', b'{"id": "a/b", "sha": "../x"}', b"null"])
def test_an_answer_that_is_not_a_hubs_is_refused(hub: Hub, body: bytes) -> None:
    hub.faults = [Fault("api", times=99, status=200, body=body)]
    with pytest.raises(CheckpointError, match="check HF_ENDPOINT"):
        open_checkpoint("org/name")


def test_a_hub_that_cannot_be_reached_is_an_error(hub: Hub, single: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(CheckpointError, match=r"cannot be read from 127\.0\.0\.1:1: .*HF_HUB_OFFLINE"):
        open_checkpoint("org/name")
    assert len(hub.waits) == 2


def test_escapes_in_what_a_server_says_are_not_printed(hub: Hub, single: str) -> None:
    for status in (401, 403, 404, 418, 500):
        hub.faults = [Fault("api", times=99, status=status, headers={"X-Error-Message": "\x1b[31m"}, body=b"\x1b[31m")]
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint("org/name")
        assert str(caught.value).isprintable()
