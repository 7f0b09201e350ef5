"""The cores that a plan counts on: those of this process, not of its machine, or those of a cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scanner.engine.cores import expected_cores, usable_cores
from scanner.engine.options import PoolOptions


def limits(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/cpu.").replace("max", "cpu.max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_the_quota_of_a_container_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    assert usable_cores(tmp_path / "none") == 96
    assert usable_cores(limits(tmp_path / "two", max="1600000 100000\n")) == 16
    assert usable_cores(limits(tmp_path / "half", max="50000 100000\n")) == 1
    assert usable_cores(limits(tmp_path / "open", max="max 100000\n")) == 96
    assert usable_cores(limits(tmp_path / "one", cpu__cfs_quota_us="250000\n", cpu__cfs_period_us="100000\n")) == 3
    assert usable_cores(limits(tmp_path / "off", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")) == 96


def test_the_affinity_of_a_process_limits_the_cores(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores(tmp_path) == 1
        assert expected_cores(PoolOptions()) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("local_ray")
def test_those_of_a_cluster_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert expected_cores(PoolOptions(address="auto")) == int(ray.cluster_resources()["CPU"])
