"""When a model in training is measured: every N steps, and never for more than its share of the time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scanner import CheckpointError, Method, StoreError, open_store
from scanner.callbacks import LightningCallback, Monitor, TransformersCallback
from scanner.callbacks import monitor as module
from scanner.errors import ConfigError
from tests.memory.models import tiny


class Clock:
    """A clock that training and measuring move on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rows_are_kept_under_the_step_and_queries_of_checkpoints_read_them(tmp_path: Path) -> None:
    model = tiny("llama")
    monitor = Monitor(store=tmp_path / "store", name="run", every=2, budget=None, roles=("query", "mlp_down"), layers=1)
    monitor.begin(model)
    logged = {step: monitor.step(model, step) for step in range(1, 5)}
    assert [step for step, values in logged.items() if values] == [2, 4]
    store = open_store(str(tmp_path / "store"))
    scans = store.sql("SELECT model, revision, format, matrices FROM scans ORDER BY finished_at").to_pylist()
    kept = {"model": "run", "format": "memory", "matrices": 2}
    # Nothing was trained between the two steps: they are two checkpoints all the same.
    assert scans == [kept | {"revision": "step-2"}, kept | {"revision": "step-4"}]
    checkpoints = store.query("family_trend", model="run", by_step=True).to_pylist()
    assert [(row["step"], row["place"], row["since_first"]) for row in checkpoints] == [(2, 1, 0.0), (4, 2, 0.0)]
    trend = store.query("checkpoint_roles", model="run", by_step=True).to_pylist()
    assert [(row["role"], row["step"], row["place"]) for row in trend] == [
        ("query", 2, 1),
        ("query", 4, 2),
        ("mlp_down", 2, 1),
        ("mlp_down", 4, 2),
    ]
    assert all(row["p_change"] in (None, 0.0) for row in trend)
    [value] = store.sql("SELECT v_p_mean FROM all_matrices WHERE role = 'query' AND revision = 'step-2'")["v_p_mean"]
    assert logged[2]["rmt/query/v_p_mean"] == value.as_py()
    assert set(logged[2]) == {f"rmt/{role}/{metric}" for role in ("query", "mlp_down") for metric in module.METRICS}


def test_values_are_means_over_layers_or_those_of_each_layer() -> None:
    model = tiny("llama")
    options: dict[str, Any] = {"every": 1, "budget": None, "metrics": "stable_rank", "roles": "query"}
    together = Monitor(**options).step(model, 1)
    apart = Monitor(by_layer=True, **options).step(model, 1)
    expected = []
    for layer in model.model.layers:
        values = torch.linalg.svdvals(layer.self_attn.q_proj.weight.double())
        expected.append(float((values**2).sum() / values[0] ** 2))
    assert apart == {
        "rmt/layer0/query/stable_rank": pytest.approx(expected[0], rel=1e-12),
        "rmt/layer1/query/stable_rank": pytest.approx(expected[1], rel=1e-12),
    }
    assert together == {"rmt/query/stable_rank": pytest.approx(sum(expected) / 2, rel=1e-12)}


def test_a_budget_thins_out_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take 1 s, measurements 4 s, and may take a tenth of the time."""
    clock, model = Clock(), torch.nn.Linear(8, 8)
    monitor = Monitor(every=5, budget=0.1, clock=clock)

    def measure(*_: object) -> dict[str, float]:
        clock.now += 4.0
        return {"value": 1.0}

    monkeypatch.setattr(monitor, "_measure", measure)
    monitor.begin(model)
    began, measured = clock.now, []
    for step in range(1, 201):
        clock.now += 1.0
        if monitor.step(model, step):
            measured.append(step)
            # The first is made on trust, because nothing is known of its time.
            assert len(measured) == 1 or monitor.spent <= 0.1 * (clock.now - began) + 1e-9
    # After n measurements, 4 (n + 1) <= 0.1 (step + 4 (n + 1)): at 36 (n + 1) steps, rounded up to a multiple of 5.
    assert measured == [5, 75, 110, 145, 180]
    assert monitor.skipped == 40 - 5
    assert monitor.spent == 20.0


def test_the_first_measurement_waits_if_its_expected_time_is_over_the_budget() -> None:
    clock, model = Clock(), torch.nn.Linear(64, 64)
    monitor = Monitor(every=1, budget=0.5, clock=clock)
    monitor.begin(model)
    assert monitor.expected > 0
    assert monitor.step(model, 1) == {}
    clock.now += 10 * monitor.expected
    assert monitor.step(model, 2)


def test_a_measurement_that_fails_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(store=tmp_path / "store", every=1, budget=None)
    monitor.begin(model := torch.nn.Linear(8, 8))

    def full(*_: object, **__: object) -> str:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "scan_opened", full)
        with pytest.warns(UserWarning, match="step 1 was not measured: the disk is full"):
            assert monitor.step(model, 1) == {}
    assert monitor.step(model, 2)


def test_weights_that_became_nan_are_counted() -> None:
    broken = torch.nn.Linear(8, 8)
    model = torch.nn.Sequential(broken, torch.nn.Linear(8, 8))
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    values = Monitor(every=1, budget=None, metrics="stable_rank").step(model, 1)
    assert values["rmt/failed"] == 1.0
    assert set(values) == {"rmt/failed", "rmt/other/stable_rank"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"`every` must be a number of steps of at least 1, got 0"),
        ({"budget": 0.0}, r"`budget` must be a share of the time of training above 0 and up to 1, got 0.0"),
        ({"budget": 5}, r"`budget` must be a share"),
        (
            {"metrics": ("tensor",)},
            r"`metrics` has 'tensor', which is no number of table `matrices`: choose from layer, ",
        ),
        ({"metrics": ()}, r"`metrics` is empty"),
        ({"roles": "querry"}, r"`only` has 'querry', which must be one of query, key, "),
        ({"layer": 3}, r"`layer` is no option of a scan: did you mean 'layers'\?"),
    ],
)
def test_options_that_are_not_accepted(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Monitor(**options)


def test_every_process_refuses_a_sharded_model() -> None:
    """A process that refuses alone leaves the others waiting for it."""

    class FullyShardedDataParallel(torch.nn.Module):
        pass

    model = torch.nn.Sequential(FullyShardedDataParallel())
    other = SimpleNamespace(is_world_process_zero=False, is_global_zero=False)
    with pytest.raises(CheckpointError, match="sharded by FSDP"):
        TransformersCallback().on_train_begin(None, other, None, model=model)
    with pytest.raises(CheckpointError, match="sharded by FSDP"):
        LightningCallback().on_train_start(other, model)


def test_a_model_without_matrices_is_refused_before_training() -> None:
    monitor = Monitor(layers=7)
    with pytest.raises(
        CheckpointError, match=r"no matrix to analyze among its \d+ tensors \(.*not selected: layer"
    ) as raised:
        monitor.begin(tiny("llama"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"metrics": ["u_p_scale_mean"], "scale": "none"}, "u_p_scale_mean.*no scale null"),
        ({"metrics": ["u_p_mean"], "values_only": True}, "u_p_mean.*leaves out the vectors"),
        ({"metrics": ["alpha"], "method": Method(metrics=("none",))}, "alpha.*not in `metrics`"),
        ({"budget": "5%"}, "share of the time"),
    ],
)
def test_what_the_method_does_not_compute_is_refused(options: dict[str, Any], missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        Monitor(**options)


def test_logged_columns_choose_the_metrics() -> None:
    assert Monitor(metrics=["alpha_farms", "ww_alpha"]).method.metrics == ("alpha_farms", "ww_alpha")
    assert Monitor().method.metrics == ()
    alone = Monitor(values_only=True)
    assert "u_p_mean" not in alone.metrics
    assert "stable_rank" in alone.metrics
