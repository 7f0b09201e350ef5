"""A token that is sent to a mirror of the Hub without encryption is warned of, once."""

from __future__ import annotations

import logging

import pytest

from scanner.checkpoint.sources import hub_lookup
from scanner.checkpoint.sources.hub_lookup import warn_of_clear_text


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    warn_of_clear_text.cache_clear()


@pytest.mark.parametrize(
    "endpoint", ["http://mirror.example", "http://10.0.0.5:8080", "http://me:pw@mirror.example/hub"]
)
def test_a_token_in_clear_text_is_warned_of_once(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        warn_of_clear_text(endpoint)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "sent without encryption" in record.getMessage()
    assert "hf_secret" not in record.getMessage()
    assert "pw@" not in record.getMessage()


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://huggingface.co",
        "https://mirror.example",
        "http://127.0.0.1:8080",
        "http://localhost:1",
        "http://[::1]:80",
    ],
)
def test_encryption_and_loopback_are_not(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_clear_text(endpoint)
    assert not caplog.records


def test_without_a_token_there_is_nothing_to_warn_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_lookup, "get_token", lambda: None)
    warn_of_clear_text("http://mirror.example")
    assert not caplog.records
