"""Options of `rmtscan nightly` that replace those of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanner.fleet import nightly
from scanner.fleet.config import NightlyConfig
from tests.golden import command


@pytest.mark.parametrize(
    ("given", "pool"),
    [
        ((), (False, 3)),
        (("--share-cores",), (True, 3)),
        (("--no-share-cores", "--workers", "2"), (False, 2)),
    ],
)
def test_an_option_that_is_given_replaces_the_configuration_even_with_its_default(
    given: tuple[str, ...], pool: tuple[bool, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "watch.toml"
    file.write_text("[watch]\nauthors = ['a']\n[pool]\nshare_cores = false\nworkers = 3\n")
    seen: list[NightlyConfig] = []

    def run_night(config: NightlyConfig, **_: object) -> nightly.NightReport:
        seen.append(config)
        return nightly.NightReport(store="s", night=None)

    monkeypatch.setattr(nightly, "run_night", run_night)
    assert command.run("nightly", str(file), *given).status == 0
    assert [(one.pool.share_cores, one.pool.workers) for one in seen] == [pool]
