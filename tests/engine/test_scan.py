"""Scans from references to rows, on a real Ray and into real files."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

import scanner
from scanner import Method, PoolOptions, ScannerError, Selection, Store, open_store
from scanner.engine import ScanReport
from scanner.engine.scan import scan as run_scan
from scanner.engine.tasks import ControlTask, MatrixTask
from scanner.rmt.ensembles import control, control_of
from scanner.rmt.metric_set import MATRIX_COLUMNS, chosen, metric_named
from tests.checkpoint.writing import checkpoint

from .checkpoints import results, small, spectrum, tensors, weight
from .mortal import Refuses
from .observer import Recorder

pytestmark = pytest.mark.usefixtures("local_ray")
ONE = PoolOptions(workers=1)
scanning = importlib.import_module("scanner.engine.scan")
comparing = importlib.import_module("scanner.engine.compare")
MODULE = importlib.import_module("scanner.engine.run")  # its function has the same name


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """A scan that several tests use."""

    report: ScanReport
    told: Recorder
    store: Store


def scanned(references: str | Path | list[str], folder: Path, **options: object) -> Scanned:
    told = Recorder()
    report = run_scan(references, store=folder, observer=told, **options)  # type: ignore[arg-type]
    return Scanned(report=report, told=told, store=open_store(str(folder)))


@contextmanager
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the context, starting Ray fails the test."""
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "run_tasks", lambda *_, **__: pytest.fail("Ray was asked for"))
        yield


# ---- a real model


@pytest.fixture(scope="module")
def real(minilm: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Scanned:
    return scanned(minilm, tmp_path_factory.mktemp("real") / "store")


def test_every_tensor_of_a_real_model_is_accounted_for(real: Scanned, minilm: Path) -> None:
    [model] = real.report.models
    with safe_open(minilm / "model.safetensors", "pt") as file:
        names = set(file.keys())
        matrices = {name for name in names if len(file.get_slice(name).get_shape()) == 2}
    analyzed = set(real.store.sql("SELECT tensor FROM matrices")["tensor"].to_pylist())
    skipped = [name for tensors in model.skipped.values() for name in tensors]
    assert (model.analyzed, model.failed, model.error) == (37, 0, None)
    assert analyzed | set(skipped) == names
    assert model.analyzed + model.skipped_count + model.failed == len(names)
    assert matrices - analyzed == {name for name in matrices if "embeddings" in name}
    row: Any = real.store.scan_row(model.scan_id)
    assert row is not None
    assert (row["matrices"], row["skipped"], row["failed"], row["vectors"]) == (37, len(skipped), 0, 37 * 384)
    assert row["seconds"] > 0
    assert row["finished_at"] > row["started_at"]


@pytest.mark.parametrize("tensor", ["attention.self.query", "intermediate.dense", "output.dense"])
def test_the_rows_of_a_real_matrix_are_what_numpy_and_analyze_say(real: Scanned, minilm: Path, tensor: str) -> None:
    name = f"encoder.layer.2.{tensor}.weight"
    with safe_open(minilm / "model.safetensors", "pt") as file:
        matrix = file.get_tensor(name)
    vectors = real.store.sql("SELECT * FROM vectors WHERE tensor = $name ORDER BY k", {"name": name})
    assert vectors["k"].to_pylist() == list(range(384))

    truth = np.linalg.svd(matrix.numpy().astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(vectors["singular_value"].to_numpy(), truth, rtol=1e-6)

    alone = scanner.analyze(matrix)
    for column in ("u_ks", "u_p", "u_p_local", "v_ks", "v_p", "v_p_local", "u_ipr", "v_ipr", "u_peak", "v_peak"):
        np.testing.assert_allclose(vectors[column].to_numpy(), getattr(alone, column), rtol=1e-4, err_msg=column)
    assert vectors["region"].to_pylist() == list(alone.region)
    [row] = real.store.sql("SELECT * FROM matrices WHERE tensor = $name", {"name": name}).to_pylist()
    assert (row["rows"], row["cols"], row["layer"]) == (*matrix.shape, 2)
    assert (row["outliers_left"], row["outliers_right"], row["rank"]) == (
        alone.outliers_left,
        alone.outliers_right,
        alone.rank,
    )
    for column in ("sigma", "sigma_std", "sigma_bulk", "mp_lower", "mp_upper", "mp_ks", "stable_rank", "u_p_mean"):
        assert row[column] == pytest.approx(getattr(alone, column), rel=1e-9), column
    assert row["sigma_std"] == pytest.approx(float(matrix.double().std(correction=0)), rel=1e-6)


@pytest.mark.parametrize("metrics", [("none",), ("ww_D", "strength")])
def test_a_scan_has_the_metrics_that_were_asked_for(metrics: tuple[str, ...], tmp_path: Path) -> None:
    found = scanned(small(tmp_path / "model"), tmp_path / "store", method=Method(metrics=metrics), pool=ONE).store
    matrices, vectors = (found.sql(f"from {table}") for table in ("matrices", "vectors"))
    some = {column.name for column in metric_named("ww_alpha").matrix} if "none" not in metrics else set()
    names = {column.name for column in MATRIX_COLUMNS}
    assert {name for name in names if matrices[name].null_count < len(matrices)} == some
    outliers = vectors.filter(pc.equal(vectors["region"], "right")) if some else vectors.slice(0, 0)
    assert vectors["strength"].null_count == len(vectors) - len(outliers)


def test_a_scan_with_defaults_has_every_default_metric(real: Scanned) -> None:
    rows = real.store.sql("from matrices")
    for name in chosen(["default"]):
        for column in metric_named(name).matrix:
            if column.name != "alpha_failure":
                assert rows[column.name].null_count == 0, column.name
    assert rows["alpha_farms"].null_count == rows["metrics_failure"].null_count == len(rows)


def test_controls_are_stored_once_for_every_shape_and_ensemble(real: Scanned) -> None:
    found = real.store.sql("SELECT DISTINCT rows, cols, ensemble, seed FROM controls ORDER BY ALL").to_pylist()
    shapes = [(384, 384), (384, 1536), (1536, 384)]
    assert [(row["rows"], row["cols"], row["ensemble"]) for row in found] == [
        (*shape, ensemble) for shape in shapes for ensemble in ("gaussian", "kaiming_uniform")
    ]
    assert len([task for task in real.told.tasks if isinstance(task, ControlTask)]) == 6


def test_a_control_is_the_seeded_matrix_that_it_says(real: Scanned) -> None:
    rows = real.store.sql("SELECT * FROM controls WHERE rows = 1536 AND ensemble = 'gaussian' ORDER BY k")
    matrix = control("gaussian", 1536, 384, rows["seed"][0].as_py())
    np.testing.assert_allclose(rows["singular_value"].to_numpy(), np.linalg.svd(matrix, compute_uv=False), rtol=1e-6)


def test_controls_that_are_made_from_a_matrix_are_stored_for_each_draw(minilm: Path, tmp_path: Path) -> None:
    method = Method(selection=Selection(only=("value",), layers=(0,)))
    folder = tmp_path / "store"
    options = {"ensembles": ("gaussian", "permuted", "sign", "scale"), "method": method, "pool": ONE}
    first = scanned(minilm, folder, draws=2, **options)
    assert first.report.failed == 0
    found = first.store.sql(
        "SELECT DISTINCT scan_id, role, ensemble, seed FROM matrix_controls ORDER BY ALL"
    ).to_pylist()
    [identity] = {row["scan_id"] for row in found}
    assert identity == first.report.models[0].scan_id
    drawn = [(ensemble, seed) for ensemble in ("permuted", "scale", "sign") for seed in (0, 1)]
    assert [(row["ensemble"], row["seed"]) for row in found] == drawn
    assert first.store.sql("SELECT DISTINCT seed FROM controls ORDER BY seed")["seed"].to_pylist() == [0, 1]

    with safe_open(minilm / "model.safetensors", "np") as file:
        weight = file.get_tensor("encoder.layer.0.attention.self.value.weight").astype(np.float64)
    energy = "SELECT sum(singular_value ** 2) AS energy FROM matrix_controls WHERE ensemble = $e GROUP BY seed"
    for ensemble in ("permuted", "sign"):
        energies = first.store.sql(energy, {"e": ensemble})["energy"].to_pylist()
        assert energies == pytest.approx([(weight**2).sum()] * 2, rel=1e-6)
    permuted = control_of("permuted", weight, 1)
    assert sorted(permuted.ravel()) == sorted(weight.ravel())
    stored = first.store.sql(
        "SELECT singular_value FROM matrix_controls WHERE ensemble = 'permuted' AND seed = 1 ORDER BY k"
    )["singular_value"].to_numpy()
    np.testing.assert_allclose(stored, np.linalg.svd(permuted, compute_uv=False), rtol=1e-6)
    tests = (
        "SELECT avg(u_p_scale), avg(v_p_scale), count(*) FILTER (region_scale = 'right') FROM matrix_controls "
        "WHERE ensemble = 'scale'"
    )
    [row] = first.store.sql(tests).to_pylist()
    u_p, v_p, outside = row.values()
    assert (u_p, v_p) == pytest.approx((0.5, 0.5), abs=0.05)
    assert outside <= 4

    again = scanned(minilm, folder, draws=2, **options)
    assert again.told.tasks == []
    more = scanned(minilm, folder, draws=3, **options)
    assert [type(task).__name__ for task in more.told.tasks].count("MatrixControlTask") == 1
    seeds = more.store.sql("SELECT DISTINCT seed FROM matrix_controls ORDER BY seed")["seed"].to_pylist()
    assert seeds == [0, 1, 2]


def test_a_matrix_without_a_scale_null_has_no_draws_of_it_and_a_line_says_why(tmp_path: Path) -> None:
    spikes = torch.zeros(30, 40)
    spikes[3, 5] = 2.0
    names = {
        "query": torch.zeros(24, 24),
        "key": torch.ones(1, 32),
        "value": torch.ones(20, 20),
        "mlp_up": spikes,
        "mlp_down": weight(48, 32, 1),
    }
    parts = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"}
    parts |= {"mlp_up": "mlp.up_proj", "mlp_down": "mlp.down_proj"}
    model = checkpoint(
        tmp_path / "model",
        {f"model.layers.0.{parts[role]}.weight": matrix for role, matrix in names.items()},
        {"architectures": ["LlamaForCausalLM"]},
    )
    options = {"ensembles": ("scale", "sign"), "pool": ONE}
    first = scanned(model, tmp_path / "store", **options)
    failures = {
        row["role"]: row["scale_failure"]
        for row in first.store.sql("select role, scale_failure from matrices").to_pylist()
    }
    without = {role for role, reason in failures.items() if reason}
    assert without == set(names) - {"mlp_down"}
    drawn = first.store.sql("select role, ensemble, count(*) as n from matrix_controls group by all").to_pylist()
    assert {row["role"] for row in drawn if row["ensemble"] == "scale"} == {"mlp_down"}
    assert {row["role"] for row in drawn if row["ensemble"] == "sign"} == set(names)
    assert (first.told.failed, first.report.exit_status) == ([], 0)
    [line] = first.told.notes
    [role] = {role for role in without if parts[role] in line}
    assert line.startswith(
        f"no draws of the scale null of {tmp_path.name}/model: model.layers.0.{parts[role]}.weight: "
    )
    assert line.endswith(f"{failures[role]} (3 more matrices have none)")
    assert scanned(model, tmp_path / "store", **options).told.tasks == [], "what has no scale null is not tried again"


def test_a_scan_of_values_has_those_of_the_whole_scan_and_replaces_no_vectors(
    real: Scanned, minilm: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(real.store.url, tmp_path / "store")
    method = Method(values_only=True, selection=Selection(layers=(0, 1)))
    alone = scanned(minilm, store, method=method, ensembles=("gaussian", "sign"), pool=ONE)
    [model] = alone.report.models
    [whole] = real.report.models
    assert (model.failed, model.scan_id == whole.scan_id) == (0, False)
    both = alone.store.sql(
        "SELECT max(abs(one.singular_value / other.singular_value - 1)) AS error, count(*) AS n, count(one.u_p) AS p, "
        "count(DISTINCT one.region = other.region) AS regions "
        "FROM all_vectors AS one JOIN all_vectors AS other USING (tensor, k) "
        "WHERE one.scan_id = $one AND other.scan_id = $other",
        {"one": model.scan_id, "other": whole.scan_id},
    ).to_pylist()
    assert both[0]["error"] < 1e-9
    assert (both[0]["n"], both[0]["p"], both[0]["regions"]) == (12 * 384, 0, 1)
    assert alone.store.sql("SELECT DISTINCT scan_id FROM vectors").to_pylist() == [{"scan_id": whole.scan_id}]
    row = alone.store.sql("SELECT * FROM all_matrices WHERE scan_id = $id LIMIT 1", {"id": model.scan_id}).to_pylist()[
        0
    ]
    assert row["svd_method"] == "gram"
    assert [row[name] for name in ("u_p_mean", "v_p_omnibus", "scale_kind", "scale_failure")] == [None] * 4
    drawn = alone.store.sql("SELECT count(*) AS n, count(u_p) AS p FROM matrix_controls").to_pylist()
    assert drawn == [{"n": 12 * 384, "p": 0}]
    assert scanned(minilm, store, method=method, ensembles=("gaussian", "sign"), pool=ONE).told.tasks == []


def test_the_next_scan_uses_the_controls_that_are_there(real: Scanned, minilm_tuned: Path) -> None:
    folder = Path(real.store.url) / "controls"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    method = Method(selection=Selection(only=("query",), layers=(0,)))
    second = scanned(minilm_tuned, Path(real.store.url), method=method, pool=ONE)
    assert [type(task) for task in second.told.tasks] == [MatrixTask]
    assert second.report.models[0].analyzed == 1
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_is_committed_is_not_scanned_again(real: Scanned, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Path(real.store.url)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.parquet")}
    with no_ray(monkeypatch):
        again = scanned(minilm, store)
    [model] = again.report.models
    assert (model.new, model.analyzed) == (False, 37)
    assert (again.told.queues, again.told.tasks) == ([], [])
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.parquet")} == before


# ---- several references


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Scanned:
    """Two models, a copy of the first, a damaged one and a missing one, in one command on one worker."""
    folder = tmp_path_factory.mktemp("several")
    small(folder / "one", layers=3, hidden=20)
    small(folder / "two", layers=2, hidden=40, seed=1)
    shutil.copytree(folder / "one", folder / "copy")
    damaged = Path(small(folder / "damaged")) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    names = [str(folder / name) for name in ("damaged", "one", "missing", "copy", "two", "one")]
    return scanned(names, folder / "store", pool=ONE)


def test_every_reference_is_reported_in_the_order_in_which_it_was_named(several: Scanned) -> None:
    names = [Path(model.reference).name for model in several.report.models]
    assert names == ["damaged", "one", "missing", "copy", "two"]


def test_a_checkpoint_that_cannot_be_opened_does_not_stop_the_others(several: Scanned) -> None:
    damaged, one, missing, copy, two = several.report.models
    assert "download it again" in str(damaged.error)
    assert "does not exist" in str(missing.error)
    assert [model.analyzed for model in (one, copy, two)] == [12, 12, 8]
    assert several.report.errors == (damaged, missing)
    assert len(several.store.committed()) == 2


def test_the_same_content_under_two_paths_is_one_scan_reported_twice(several: Scanned) -> None:
    _, one, _, copy, two = several.report.models
    assert one.scan_id == copy.scan_id != two.scan_id
    keys = [ref.key for task in several.told.tasks if isinstance(task, MatrixTask) for ref in task.refs]
    assert len(keys) == 12 + 8


def test_two_references_share_one_queue_largest_first(several: Scanned) -> None:
    told, two = several.told, several.report.models[4]
    assert told.queues == [len(told.tasks)]
    costs = [task.cost for task in told.tasks]
    # The order of completion: of the two tasks that a worker holds, one may overtake the other.
    assert all(max(costs[at:]) <= max(costs[at - 1 : at + 1]) for at in range(1, len(costs)))
    finished = [Path(model.reference).name for model in told.models if model.error is None]
    assert set(finished[:1]) == {"two"}, "the larger matrices are all in the model that was named last"
    assert max(told.tasks, key=lambda task: task.cost) in told.tasks[:4]
    assert two.new


# ---- odd matrices

ODD = {
    "zero": torch.zeros(6, 4),
    "deficient": torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 6.0)),
    "row": torch.arange(1.0, 10.0).reshape(1, 9),
    "column": torch.arange(1.0, 8.0).reshape(7, 1),
    "two": torch.tensor([[3.0, 1.0], [0.0, 2.0]]),
    "one": torch.tensor([[2.5]]),
    "half": weight(12, 8, 1).to(torch.float16),
    "brain": weight(12, 8, 2).to(torch.bfloat16),
    "double": weight(12, 8, 3).double(),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Scanned:
    folder = tmp_path_factory.mktemp("odd")
    broken = {"nan": weight(8, 8, 4), "inf": weight(8, 8, 5)}
    broken["nan"][2:4, 1] = float("nan")
    broken["inf"][0, 0], broken["inf"][1, 1], broken["inf"][2, 2] = float("inf"), float("-inf"), float("nan")
    skipped = {"ints": torch.ones(3, 3, dtype=torch.int64), "bytes": torch.ones(3, 3, dtype=torch.uint8)}
    skipped |= {"cube": torch.ones(2, 2, 2), "bias": torch.ones(5)}
    named = {f"{name}.weight": tensor for name, tensor in (ODD | broken | skipped).items()}
    return scanned(checkpoint(folder / "odd", named), folder / "store", pool=ONE)


def test_the_three_counts_add_up_when_some_fail(odd: Scanned) -> None:
    [model] = odd.report.models
    assert (model.analyzed, model.failed, model.skipped_count) == (len(ODD), 2, 4)
    assert odd.report.failed == 2
    [row] = odd.store.query("scans").to_pylist()
    assert (row["matrices"], row["failed"], row["skipped"]) == (len(ODD), 2, 4)


def test_entries_that_are_not_finite_are_counted_in_the_failure(odd: Scanned) -> None:
    failures = {row["tensor"]: row for row in odd.store.sql("SELECT * FROM failures").to_pylist()}
    assert set(failures) == {"nan.weight", "inf.weight"}
    assert {row["stage"] for row in failures.values()} == {"analyse"}
    assert "2 NaN and 0 infinite of 64" in failures["nan.weight"]["message"]
    assert "1 NaN and 2 infinite of 64" in failures["inf.weight"]["message"]
    assert len(odd.told.failed) == 2


def test_what_is_no_floating_point_matrix_is_skipped_with_its_reason(odd: Scanned) -> None:
    [model] = odd.report.models
    reasons = {name: reason for reason, names in model.skipped.items() for name in names}
    assert set(reasons) == {"ints.weight", "bytes.weight", "cube.weight", "bias.weight"}
    assert "not floating point" in reasons["ints.weight"]
    assert "3-D" in reasons["cube.weight"]


@pytest.mark.parametrize("name", ODD)
def test_odd_matrices_have_the_spectrum_that_numpy_finds(odd: Scanned, name: str) -> None:
    truth = np.linalg.svd(ODD[name].double().numpy(), compute_uv=False)
    found = spectrum(odd.store.sql("SELECT * FROM vectors"), f"{name}.weight")
    np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-6 * max(truth[0], 1e-30))


def test_numerically_zero_singular_values_have_no_p_value(odd: Scanned) -> None:
    found = odd.store.sql(
        "SELECT tensor, count(*) AS n, count(u_p) AS u, count(v_p) AS v FROM vectors "
        "WHERE region = 'null' GROUP BY tensor ORDER BY tensor"
    ).to_pylist()
    assert found == [
        {"tensor": "deficient.weight", "n": 4, "u": 0, "v": 0},
        {"tensor": "zero.weight", "n": 4, "u": 0, "v": 0},
    ]
    ranks = dict(zip(*odd.store.sql("SELECT tensor, rank FROM matrices").to_pydict().values(), strict=True))
    assert (ranks["zero.weight"], ranks["deficient.weight"], ranks["two.weight"]) == (0, 1, 2)


def test_not_a_number_never_reaches_a_table(odd: Scanned) -> None:
    for table in ("matrices", "vectors", "controls"):
        for path in (Path(odd.store.url) / table).glob("*.parquet"):
            rows = pq.read_table(path)
            for name in rows.column_names:
                values = [value for value in rows[name].to_pylist() if isinstance(value, float)]
                assert np.isfinite(values).all(), (table, name)


# ---- the same rows in all circumstances


def test_the_number_of_workers_changes_nothing_and_force_does_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(tmp_path / "model")
    one = scanned(model, tmp_path / "one", pool=ONE)
    two = scanned(model, tmp_path / "two", pool=PoolOptions(workers=2))
    first = results(one.store)
    assert len(first["matrices"]) == 12
    assert len(first["vectors"]) == 12 * 24
    assert results(two.store) == first

    [before] = one.store.sql("SELECT finished_at FROM scans")["finished_at"].to_pylist()
    again = scanned(model, tmp_path / "one", pool=ONE, force=True)
    assert again.report.models[0].new
    assert [type(task) for task in again.told.tasks] == [MatrixTask] * 12, "controls stay"
    assert again.store.sql("SELECT finished_at FROM scans")["finished_at"].to_pylist()[0] > before
    assert results(again.store) == first
    with no_ray(monkeypatch):
        assert not scanned(model, tmp_path / "one").report.models[0].new


def test_a_worker_that_cannot_start_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "Worker", Refuses)
    with pytest.raises(ScannerError, match="no worker can start: RuntimeError: no such device"):
        scanned(small(tmp_path / "model"), tmp_path / "store", pool=ONE)
    assert open_store(str(tmp_path / "store")).committed() == []


def test_a_file_cut_short_while_it_is_scanned_ends_its_scan(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", tensors(layers=1, hidden=24))
    file = Path(model) / "model.safetensors"

    class Cut(Recorder):
        def starting(self, *counts: object) -> None:
            super().starting(*counts)
            with file.open("r+b") as opened:
                opened.truncate(file.stat().st_size - 4 * 24 * 24)

    report = run_scan(model, store=tmp_path / "store", observer=Cut(), pool=ONE)
    assert report.exit_status == 1
    assert "model.safetensors" in str(report.models[0].error)
    assert "run the command again" in str(report.models[0].error)
    assert open_store(str(tmp_path / "store")).committed() == []


def test_an_unknown_ensemble_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ScannerError, match="unknown ensemble"):
        run_scan("nowhere", store=tmp_path / "store", ensembles=["goe"])  # type: ignore[list-item]
    assert not (tmp_path / "store").exists()


def test_a_checkpoint_without_a_wanted_matrix_says_what_there_is(tmp_path: Path) -> None:
    method = Method(selection=Selection(only=("router",)))
    [model] = scanned(small(tmp_path / "model"), tmp_path / "store", method=method).report.models
    assert "no matrix to analyze among its 15 tensors" in str(model.error)
    assert "12 not selected: role" in str(model.error)


@pytest.mark.parametrize("same", [True, False], ids=["a copy", "a matrix of its own"])
def test_workers_and_not_the_driver_compare_the_bytes_of_embedding_and_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """The driver must not read weights; workers are processes of their own, which the patch does not reach."""
    monkeypatch.setattr("scanner.engine.tasks.resolve_ties", lambda checks: pytest.fail("the driver compared weights"))
    monkeypatch.setattr(comparing, "list_matrices", without_reading(comparing.list_matrices))
    monkeypatch.setattr(scanning, "list_matrices", without_reading(scanning.list_matrices))
    named = {
        "model.embed_tokens.weight": weight(24, 16, 1),
        "model.layers.0.self_attn.q_proj.weight": weight(16, 16, 2),
    }
    named["lm_head.weight"] = named["model.embed_tokens.weight"].clone() if same else weight(24, 16, 3)
    config = {"architectures": ["LlamaForCausalLM"]}
    base = checkpoint(tmp_path / "base", named, config)
    tuned = checkpoint(
        tmp_path / "tuned",
        {name: 1.5 * tensor for name, tensor in named.items()},
        {"architectures": ["LlamaForCausalLM"]},
    )
    method = Method(selection=Selection(embeddings=True))
    found = scanned(base, tmp_path / "store", method=method, pool=ONE, ensembles=())
    [model] = found.report.models
    assert model.analyzed == (2 if same else 3)
    assert model.skipped == ({"tied with model.embed_tokens.weight": ["lm_head.weight"]} if same else {})
    assert sum(found.told.queues) == 3
    pair = comparing.compare(base, tuned, store=tmp_path / "store", method=method, pool=ONE, ensembles=())
    assert (pair.matrices, pair.failed) == (2 if same else 3, ())


def without_reading(list_matrices: Any) -> Any:
    def checked(checkpoint: Any, selection: Any, *, compare_bytes: bool = True) -> Any:
        assert not compare_bytes, "weights would be read"
        return list_matrices(checkpoint, selection, compare_bytes=False)

    return checked


def test_the_report_names_models_that_the_folder_also_holds(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", {"encoder.layer.0.attention.self.query.weight": torch.randn(8, 8)})
    dense = checkpoint(tmp_path / "model" / "2_Dense", {"linear.weight": torch.randn(4, 8)})
    for new in (True, False):
        (model,) = scanned(str(tmp_path / "model"), tmp_path / "store", pool=ONE).report.models
        assert (model.new, model.beside) == (new, (dense,))


def test_a_scan_records_the_standard_deviation_of_the_config_and_edges_that_follow_from_it(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "initializer_range": 0.02}
    reference = checkpoint(tmp_path / "model", tensors(layers=1), config)
    report = run_scan(reference, store=tmp_path / "store", pool=ONE, ensembles=())
    store = open_store(report.store)
    assert store.sql("SELECT initializer_range AS i FROM scans").to_pylist() == [{"i": 0.02}]
    [row] = store.query("outliers", sigma="init").to_pylist()
    s = np.linalg.svd(tensors(layers=1)["model.layers.0.self_attn.q_proj.weight"].double().numpy(), compute_uv=False)
    assert (row["query_below"], row["query_above"]) == (0, (s > 0.02 * 2 * np.sqrt(24)).sum())
    [omnibus] = store.sql("SELECT u_p_omnibus AS p FROM matrices WHERE role = 'query'").to_pylist()
    assert 0.0 < omnibus["p"] <= 1.0
