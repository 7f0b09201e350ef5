"""Rich and lazy networks: training, removal, stored rows, and loss of accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scanner.cli.main import main
from scanner.engine import PoolOptions
from scanner.engine.task import TaskError
from scanner.engine.worker import Worker
from scanner.errors import ScannerError
from scanner.experiments.images import Images, load_images
from scanner.experiments.lazy_learning import Config, Outcome, Point, compute, digest, write_point
from scanner.experiments.mlp import (
    Network,
    Regime,
    Removal,
    Training,
    correct,
    initial,
    removals,
    removed_ranks,
    train,
)
from scanner.figures import FIGURES
from scanner.store import Store, open_store

from .calls import Found, lazy_learning, without_ray

RICH, LAZY = Regime(alpha=1.0), Regime(alpha=15.0)
QUICK = Training(epochs=8, rate=0.2)


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images(None)


@pytest.fixture(scope="module")
def networks(digits: Images) -> dict[Regime, Network]:
    return {regime: train(digits, regime, QUICK, seed=0) for regime in (RICH, LAZY)}


@pytest.fixture
def blobs(tmp_path: Path) -> str:
    """Three well separated clouds: learned within one epoch."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = 4.0 * np.eye(3)[labels] + rng.standard_normal((90, 3))
    path = tmp_path / "blobs.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:30], y_test=labels[:30])
    return str(path)


def test_the_initial_network_is_the_ensemble_that_it_says() -> None:
    network = initial((64, 512, 512, 10), torch.Generator().manual_seed(0))
    assert [tuple(weight.shape) for weight in network.weights] == [(512, 64), (512, 512), (10, 512)]
    variances = [float(weight.var()) * weight.shape[1] for weight in network.weights]
    assert variances == pytest.approx([2.0, 2.0, 1.0], rel=0.05)


def test_logits_are_those_of_torch_s_own_layers(digits: Images) -> None:
    network = initial((64, 512, 512, 512, 10), torch.Generator().manual_seed(0))
    layers: list[torch.nn.Module] = []
    for weight in network.weights:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight, torch.zeros(weight.shape[0])
        layers += [layer, torch.nn.ReLU()]
    images = torch.from_numpy(digits.test[:5])
    assert torch.allclose(network.logits(images), torch.nn.Sequential(*layers[:-1])(images))


def test_a_lazy_network_hardly_moves_and_a_rich_one_does(networks: dict[Regime, Network]) -> None:
    start = initial((64, 512, 512, 512, 10), torch.Generator().manual_seed(0))
    moved = {
        regime: float((network.weights[1] - start.weights[1]).norm() / start.weights[1].norm())
        for regime, network in networks.items()
    }
    assert moved[LAZY] < 0.02
    assert moved[RICH] > 3 * moved[LAZY]


def test_both_learn_and_a_fifth_of_the_small_values_hurts_the_lazy_one(
    digits: Images, networks: dict[Regime, Network]
) -> None:
    baseline, loss, control = {}, {}, {}
    for regime, network in networks.items():
        baseline[regime], found = removals(network, digits, (0.2,), seed=0)
        loss[regime] = next(-one.delta for one in found if one.ordering == "smallest")
        control[regime] = next(-one.delta for one in found if one.ordering == "random")
    assert min(baseline.values()) > 0.8
    assert loss[RICH] < 0.03
    assert loss[LAZY] > loss[RICH] + 0.05
    assert control[RICH] > loss[RICH]  # a random fifth contains learned information


def test_frozen_layers_stay_as_they_were(digits: Images) -> None:
    start = initial((64, 512, 512, 512, 10), torch.Generator().manual_seed(3))
    network = train(digits, Regime(frozen=(0, 2)), Training(epochs=1), seed=3)
    same = [bool(torch.equal(*pair)) for pair in zip(network.weights, start.weights, strict=True)]
    assert same == [True, False, True, False]
    with pytest.raises(ValueError, match="not all"):
        train(digits, Regime(frozen=(0, 1, 2, 3)), Training(epochs=1), seed=3)


def test_ranks_by_number_by_mass_and_at_random() -> None:
    values, generator = torch.tensor([5.0, 2.0, 1.5, 1.0, 0.5]), torch.Generator().manual_seed(0)

    def ranks(ordering: str, share: float) -> list[int]:
        return removed_ranks(values, ordering, share, generator).tolist()  # type: ignore[arg-type]

    assert ranks("smallest", 0.4) == [3, 4]
    assert ranks("mass", 0.15) == [3, 4]  # 0.5 + 1.0 of 10 is exactly 15 %
    assert ranks("mass", 0.14) == [4]
    assert ranks("mass", 0.04) == []
    assert ranks("mass", 1.0) == [0, 1, 2, 3, 4]
    drawn = ranks("random", 0.6)
    assert len(set(drawn)) == 3
    assert drawn == sorted(drawn)
    with pytest.raises(ValueError, match="share"):
        ranks("smallest", 1.5)


def test_a_removal_is_the_truncated_matrix_of_numpy(digits: Images, networks: dict[Regime, Network]) -> None:
    network = networks[LAZY]
    whole, found = removals(network, digits, (0.3,), seed=0)
    truncated = []
    for weight in network.weights[:-1]:
        u, s, vt = np.linalg.svd(weight.numpy().astype(np.float64), full_matrices=False)
        s[len(s) - round(0.3 * len(s)) :] = 0.0
        truncated.append(torch.from_numpy((u * s @ vt).astype(np.float32)))
    before, after = correct(network, digits), correct(network, digits, [*truncated, network.weights[-1]])
    one = next(one for one in found if one.ordering == "smallest")
    assert (whole, one.accuracy) == (float(before.mean()), pytest.approx(float(after.mean()), abs=0.002))
    assert (one.removed, one.fraction) == (19 + 154 + 154, pytest.approx(327 / 1088))
    assert one.delta == pytest.approx(one.accuracy - whole)
    # McNemar's variance: of n images, b became wrong and c became right
    b, c, n = int(((before - after) > 0).sum()), int(((after - before) > 0).sum()), len(before)
    assert one.stderr == pytest.approx(np.sqrt((b + c) / n - ((c - b) / n) ** 2) / np.sqrt(n), rel=0.05)


def run(store: Path, data: str, **more: object) -> Found:
    options = {"regimes": (RICH, LAZY), "seeds": 1, "training": Training(epochs=2), "shares": (0.2, 0.5)} | more
    return lazy_learning(store=str(store), data=data, **options)  # type: ignore[arg-type]


def test_points_are_stored_and_never_computed_twice(tmp_path: Path, blobs: str, local_ray: None) -> None:
    one_worker = PoolOptions(workers=1)
    first = run(tmp_path / "store", blobs, pool=one_worker)
    assert (len(first.run_ids), first.kept, first.failed) == (2, 0, {})
    store = open_store(str(tmp_path / "store"))
    rows = store.sql("select * from ablations order by model, set").to_pylist()
    assert {row["model"] for row in rows} == {"mlp 3-512-512-512-3 alpha=1", "mlp 3-512-512-512-3 alpha=15"}
    assert [row["set"] for row in rows[:6]] == [
        "mass:20%",
        "mass:50%",
        "random:20%",
        "random:50%",
        "smallest:20%",
        "smallest:50%",
    ]
    assert {(row["metric"], row["dataset"], row["examples"], row["roles"]) for row in rows} == {
        ("accuracy", "blobs", 30, "hidden")
    }
    assert all(row["delta"] == pytest.approx(row["value"] - row["baseline"]) for row in rows)
    runs = store.sql("select * from experiments").to_pylist()
    assert {one["kind"] for one in runs} == {"lazy_learning"}
    assert json.loads(runs[0]["method"])["training"] == {"epochs": 2, "batch": 64, "rate": 0.05}

    again = run(tmp_path / "store", blobs, seeds=2, pool=one_worker)  # two more points, two kept
    assert (len(again.run_ids), again.kept) == (4, 2)
    answer = open_store(str(tmp_path / "store")).query("lazy_learning").to_pylist()
    assert [row["networks"] for row in answer] == [2] * 12
    only = open_store(str(tmp_path / "store")).query("lazy_learning", runs=first.run_ids[0]).to_pylist()
    assert [row["networks"] for row in only] == [1] * 6
    forced = run(tmp_path / "store", blobs, seeds=1, pool=one_worker, force=True)
    assert (forced.run_ids, forced.kept) == (first.run_ids, 0)


def test_other_widths_and_images_by_themselves_are_other_points_of_other_recipes(
    tmp_path: Path, blobs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = without_ray(monkeypatch)
    common = {"training": Training(epochs=1), "regimes": (RICH,)}
    plain = run(tmp_path / "store", blobs, **common)
    same = run(tmp_path / "store", blobs, widths=(512, 512, 512), normalize="pixels", **common)
    assert (same.run_ids, same.kept) == (plain.run_ids, 1)
    wide = run(tmp_path / "store", blobs, widths=(24, 8), **common)
    own = run(tmp_path / "store", blobs, normalize="images", **common)
    assert (wide.kept, own.kept, len({*plain.run_ids, *wide.run_ids, *own.run_ids})) == (0, 0, 3)
    store = open_store(str(tmp_path / "store"))
    rows = store.sql("select model, layers, set, removed from ablations where set = 'smallest:50%'").to_pylist()
    assert sorted((row["model"], row["layers"], row["removed"]) for row in rows) == [
        ("mlp 3-24-8-3 alpha=1", "0-1", 2 + 4),  # of 3 and 8 singular values
        ("mlp 3-512-512-512-3 alpha=1", "0-2", 2 + 256 + 256),
        ("mlp 3-512-512-512-3 alpha=1", "0-2", 2 + 256 + 256),
    ]
    answer = store.query("lazy_learning", percent=20.0).to_pylist()
    assert sorted((row["model"].split()[1], row["normalize"]) for row in answer if row["ordering"] == "mass") == [
        ("3-24-8-3", "pixels"),
        ("3-512-512-512-3", "images"),
        ("3-512-512-512-3", "pixels"),
    ]
    assert len({row["recipe"] for row in answer}) == 3
    # What was measured is a network that was trained on images that were normalized so.
    images = load_images(blobs, "images")
    network = train(images, RICH, Training(epochs=1), 0)
    [row] = [row for row in answer if row["normalize"] == "images" and row["ordering"] == "smallest"]
    assert row["baseline"] == float(correct(network, images).mean())
    assert ran[-1].normalize == "images"
    *_, said = drawn(store, model="mlp 3-512-512-512-3")
    assert "rate 0.05; every image normalized; recipe" in said


def test_hidden_layers_have_the_widths_that_were_asked_for(blobs: str) -> None:
    images = load_images(blobs)
    network = train(images, RICH, Training(epochs=1), 0, widths=(24, 8))
    assert [tuple(weight.shape) for weight in network.weights] == [(24, 3), (8, 24), (3, 8)]
    start = initial((3, 24, 8, 3), torch.Generator().manual_seed(0))
    assert not torch.equal(network.weights[1], start.weights[1])
    assert float((network.weights[1] - start.weights[1]).abs().max()) < 0.5


def test_the_frozen_network_has_every_hidden_layer_frozen() -> None:
    assert Config(widths=(9, 9)).regimes[-1] == Regime(frozen=(0, 1))
    assert Config().regimes == (RICH, LAZY, Regime(frozen=(0, 1, 2)))
    assert Config(frozen=()).regimes == (RICH, LAZY)


def add_network(store: Store, accuracy: float, *, epochs: int = 60, seed: int = 0, digest: str = "d") -> Point:
    """A network as the experiment stores it, which loses a tenth of its accuracy without the smallest fifth."""
    point = Point(
        data=None,
        digest=digest,
        dataset="digits",
        sizes=(64, 512, 512, 512, 10),
        regime=RICH,
        training=Training(epochs=epochs),
        shares=(0.2,),
        seed=seed,
    )
    one = Removal(
        ordering="smallest", share=0.2, removed=3, fraction=0.2, accuracy=accuracy - 0.1, delta=-0.1, stderr=0.01
    )
    write_point(store, point, Outcome(baseline=accuracy, removals=(one,), examples=9, seconds=1.0), {})
    return point


def test_networks_of_different_recipes_are_never_averaged(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    add_network(store, 0.97)
    add_network(store, 0.95, seed=1)
    add_network(store, 0.50, digest="other images")
    add_network(store, 0.30, epochs=1)
    rows = store.query("lazy_learning").to_pylist()
    found = [(row["epochs"], row["networks"], row["baseline"], row["batch"], row["rate"]) for row in rows]
    assert found == [  # the newest first
        (1, 1, pytest.approx(0.30), 64, 0.05),
        (60, 1, pytest.approx(0.50), 64, 0.05),
        (60, 2, pytest.approx(0.96), 64, 0.05),
    ]
    recipes = [row["recipe"] for row in rows]
    assert len(set(recipes)) == 3
    assert store.query("lazy_learning", recipe=recipes[2]).to_pylist() == rows[2:]


def drawn(store: Store, **asked: str) -> tuple[set[float], str]:
    """The values in the figure, and its labels."""
    chart = FIGURES["lazy"].draw(store, **asked).to_dict()
    values = {round(row["value"], 3) for table in chart["datasets"].values() for row in table}
    return values, " ".join(chart["title"]["subtitle"])


def test_the_figure_draws_the_newest_recipe_or_the_one_that_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    for seed in range(2):
        add_network(store, 0.97, seed=seed)
    (before,) = store.query("lazy_learning").to_pylist()
    values, said = drawn(store)
    assert values == {0.97, 0.87}
    assert f"60 epochs, batches of 64, rate 0.05; recipe {before['recipe']} 2 seeds" in said
    add_network(store, 0.30, epochs=1)
    values, said = drawn(store)
    assert values == {0.3, 0.2}
    assert "1 epoch," in said
    assert "the newest of 2" in said
    values, said = drawn(store, run=before["recipe"], model="mlp 64-512-512-512-10")
    assert values == {0.97, 0.87}
    assert "newest" not in said
    with pytest.raises(ScannerError, match=rf"unknown recipe 'x'.*{before['recipe']}"):
        drawn(store, run="x")


def test_the_same_point_gives_the_same_rows_wherever_its_files_are(tmp_path: Path, blobs: str) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    Path(blobs).rename(moved / "blobs.npz")
    images = load_images(str(moved / "blobs.npz"))
    common = {"dataset": "blobs", "sizes": (3, 512, 512, 512, 3), "regime": LAZY, "shares": (0.2,), "seed": 1}
    point = Point(data=str(moved / "blobs.npz"), digest=digest(images), training=Training(epochs=1), **common)  # type: ignore[arg-type]
    other = Point(data=blobs, digest=digest(images), training=Training(epochs=1), **common)  # type: ignore[arg-type]
    assert point.run_id == other.run_id
    one, two = compute(point), compute(point)
    assert (one.baseline, one.removals) == (two.baseline, two.removals)
    wrong = Point(data=point.data, digest="0", training=point.training, **common)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="differ from those of the driver"):
        compute(wrong)


def test_whatever_goes_wrong_is_an_outcome(blobs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_images(blobs)
    common = {"dataset": "blobs", "sizes": (3, 512, 512, 512, 3), "regime": LAZY, "shares": (0.2,), "seed": 1}
    point = Point(data=blobs, digest=digest(images), training=Training(epochs=1), **common)  # type: ignore[arg-type]
    monkeypatch.setattr("scanner.experiments.mlp.train", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("scanner.engine.worker.granted_device", lambda: "cpu")
    failure = Worker().run(point).failure
    assert failure is not None
    assert failure.message == "ZeroDivisionError: division by zero"


def test_a_network_that_diverges_is_told_and_tried_again(tmp_path: Path, blobs: str, local_ray: None) -> None:
    report = run(tmp_path / "store", blobs, regimes=(RICH,), training=Training(epochs=3, rate=1e9))
    assert report.run_ids == ()
    assert "reduce `lr`" in report.failed["alpha=1, seed 0"]
    assert open_store(str(tmp_path / "store")).sql("select count(*) as n from ablations").to_pylist() == [{"n": 0}]


def test_the_command_prints_the_table(
    tmp_path: Path, blobs: str, local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["lazy-learning", "--data", blobs, "--store", str(tmp_path / "s"), "--alpha", "1", "--frozen", "0,1"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--seeds", "1", "--epochs", "1", "--format", "json"])
    assert not end.value.code
    rows = json.loads(capfd.readouterr().out)
    assert {row["model"].split(" ", 2)[2] for row in rows} == {"alpha=1", "alpha=1 frozen=0,1"}
    assert {row["ordering"] for row in rows} == {"smallest", "mass", "random"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"regimes": (Regime(alpha=0.0),)}, "alpha"),
        ({"regimes": (Regime(frozen=(4,)),)}, "frozen"),
        ({"seeds": 0}, "`seeds` must be at least 1, got 0"),
        ({"regimes": ()}, "`alpha` or `frozen` must name at least one network"),
        ({"training": Training(rate=-1.0)}, "lr"),
        ({"shares": (1.0,)}, "between 0 and 1"),
        ({"widths": ()}, "`widths` must be one or more numbers from 1 to 16384, got none"),
        ({"widths": (512, 0)}, "`widths` has 0, which must be at least 1"),
        ({"widths": (10**9,)}, "`widths` has 1000000000, which must be at most 16384"),
        ({"widths": (8,), "regimes": (Regime(frozen=(2,)),)}, "`frozen` must be some of the 2 layers 0 to 1, not all"),
        ({"normalize": "channels"}, "`normalize` must be one of pixels, images, got 'channels'"),
    ],
)
def test_impossible_parameters_are_told(tmp_path: Path, blobs: str, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ScannerError, match=said):
        run(tmp_path / "store", blobs, **wrong)
