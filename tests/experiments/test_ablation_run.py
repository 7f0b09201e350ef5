"""Runs of ablations: their points, stored rows, reuse of results, and errors for invalid input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scanner.checkpoint import Selection, read_matrix
from scanner.engine import PoolOptions
from scanner.errors import ScannerError
from scanner.experiments.ablate import AblationTask
from scanner.experiments.nlp import models, placing
from scanner.experiments.nlp.evaluation import Perplexity, Windows
from scanner.experiments.nlp.models import load_model, model_place
from scanner.experiments.nlp.placing import open_target
from scanner.experiments.nlp.removal import indices_by_rank
from scanner.experiments.nlp.texts import TextSource
from scanner.experiments.nlp.tokens import Sequences
from scanner.store import open_store

from .calls import Found, ablate, request, without_ray
from .tiny import WORDS, save, table_file, text_file


def run(folder: Path, text: Path, store: Path, **more: Any) -> Found:
    metric = more.pop("metric", "perplexity")
    more.setdefault("random_sets", 1)
    wanted = request(metric=metric, text=TextSource(reference=str(text)), tokens=64, window=16)
    return ablate(str(folder), wanted, store=str(store), **more)


def rows(store: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = open_store(str(store)).sql("select * from ablations order by all").to_pylist()
    return found


def without(folder: Path, text: Path, role: str, wanted: str) -> float:
    """Perplexity of a model whose weights were rebuilt as U S~ V^T, from the loss of one window at a time."""
    target = open_target(str(folder), Selection(only=(role,)))
    model = load_model(model_place(target.checkpoint), head="causal")
    with torch.no_grad():
        for ref in target.inventory.matrices:
            u, s, vh = np.linalg.svd(read_matrix(target.checkpoint.source, ref).double().numpy(), full_matrices=False)
            if wanted != "none":
                s[indices_by_rank(wanted, len(s))] = 0.0
            model.get_parameter(ref.tensor).copy_(torch.from_numpy(u * s @ vh))
        ids = np.array([4 + WORDS.index(word) for word in text.read_text().split()[:64]], np.int32)
        windows, loss = Windows.cut(ids, length=16), 0.0
        for piece in windows.ids:
            given = torch.from_numpy(piece.astype(np.int64))[None]
            loss += float(model(input_ids=given, labels=given).loss) * 15
    return math.exp(loss / sum(windows.scored))


def test_points_are_what_a_rebuilt_model_gives_and_are_measured_once(tmp_path: Path, in_process: list[Any]) -> None:
    folder, text, store = save(tmp_path / "m", "llama"), text_file(tmp_path), tmp_path / "store"
    report = run(folder, text, store, roles=("mlp_down", "query"), sets="deciles")
    found = rows(store)
    by_set = {(row["roles"], row["set"], row["removed"]): row for row in found}
    assert report.failed == {}
    assert len(found) == report.total == len(in_process)
    # 16 values in deciles of 1 or 2: the ten random sets have two sizes.
    assert len([row for row in found if row["set"] == "random:1"]) == 4
    for role in ("mlp_down", "query"):
        for name in ("decile:1", "decile:10"):
            row = next(row for key, row in by_set.items() if key[:2] == (role, name))
            assert row["value"] == pytest.approx(without(folder, text, role, name), rel=1e-4)
            assert row["baseline"] == pytest.approx(without(folder, text, role, "none"), rel=1e-5)
            assert row["delta"] == pytest.approx(row["value"] - row["baseline"])
            assert (row["layers"], row["tokens"], row["examples"]) == ("0-1", 60, 4)
    assert sum(row["set"] == "none" for row in found) == 1

    in_process.clear()
    again = run(folder, text, store, roles=("mlp_down", "query"), sets="deciles")
    assert (again.run_id, again.kept, in_process) == (report.run_id, report.total - 1, [])
    gone = next(path for path in sorted((store / "ablations").iterdir()) if not path.stem.endswith("none"))
    gone.unlink()
    run(folder, text, store, roles=("mlp_down", "query"), sets="deciles")
    assert [task.point for task in in_process] == [gone.stem]  # the baseline is not measured again
    assert [{**row, "seconds": 0, "finished_at": 0} for row in rows(store)] == [
        {**row, "seconds": 0, "finished_at": 0} for row in found
    ]
    curve = open_store(str(store)).query("ablation_curve", run=report.run_id).to_pylist()
    assert len(curve) == 20

    in_process.clear()
    forced = run(folder, text, store, roles=("mlp_down", "query"), sets="deciles", force=True)
    assert (forced.run_id, forced.kept, len(in_process)) == (report.run_id, 0, report.total)
    assert all(row["random_sets"] == 1 for row in curve)


def test_ranks_that_no_matrix_has_are_an_error_and_those_of_others_no_points(
    tmp_path: Path, in_process: list[Any]
) -> None:
    """key and value have 8 singular values here, query 16."""
    folder, text, store = save(tmp_path / "m", "llama"), text_file(tmp_path), tmp_path / "store"
    for sets in ("16:20", "0:17"):
        with pytest.raises(
            ScannerError, match=f"`sets` {sets}: these matrices have at most 16 singular values, ranks 0 to 15"
        ):
            run(folder, text, store, roles=("query", "key"), sets=sets)
    with pytest.raises(ScannerError, match="needs `random_sets` of at least 1"):
        run(folder, text, store, sets="random", random_sets=0)
    assert in_process == []
    run(folder, text, store, roles=("query", "key"), sets="10:16")
    assert {(row["roles"], row["set"]) for row in rows(store)} == {
        (None, "none"),
        ("query", "range:10:16"),
        ("query", "random:1"),
    }


def test_layers_all_matrices_regions_and_other_metrics(tmp_path: Path, in_process: list[Any]) -> None:
    folder, text, store = save(tmp_path / "m", "llama"), text_file(tmp_path), tmp_path / "store"
    run(folder, text, store, by="layer", sets="region:right,region:left", metric="kl")
    run(folder, text, store, by="all", sets="0:4", metric="kl")
    found = [row for row in rows(store) if row["set"] != "none"]
    assert {row["layers"] for row in found} == {"0", "1", "0-1"}
    assert {row["roles"] for row in found} == {"query,key,value,attn_out,mlp_up,mlp_gate,mlp_down"}
    assert all(row["baseline"] == pytest.approx(0.0, abs=1e-6) for row in found)
    whole = next(row for row in found if row["set"] == "range:0:4")
    assert (whole["removed"], whole["layers"]) == (4 * 14, "0-1")
    assert whole["value"] > 0.01
    for row in found:
        if row["removed"] == 0:
            assert (row["delta"], row["stderr"]) == (0.0, 0.0)


def test_controls_are_points_that_resume_and_are_compared_with_their_set(tmp_path: Path, in_process: list[Any]) -> None:
    folder, text, store = save(tmp_path / "m", "llama"), text_file(tmp_path), tmp_path / "store"
    wanted: dict[str, Any] = {"roles": ("query",), "sets": "decile:1,decile:2", "controls": ("energy", "directions")}
    report = run(folder, text, store, random_sets=3, control_draws=2, **wanted)
    assert (report.failed, report.total) == ({}, 1 + 2 * (1 + 2 * 2) + 2 * 3)  # 16 values: deciles of 1 and 2
    found = open_store(str(store)).query("ablation_controls", run=report.run_id).to_pylist()
    assert [(row["set"], row["control"], row["draws"]) for row in found] == [
        (f"decile:{decile}", control, draws)
        for decile in (1, 2)
        for control, draws in (("random", 3), ("energy", 2), ("directions", 2))
    ]
    for row in found:
        curve = next(one for one in rows(store) if one["set"] == row["set"])
        assert row["damage"] == pytest.approx(math.log(curve["value"] / curve["baseline"]), abs=1e-9)
        assert 0.0 < row["control_energy"] <= (1.0 if row["control"] == "random" else row["energy"] + 1e-12)
    in_process.clear()
    more = run(folder, text, store, random_sets=3, control_draws=3, **wanted)
    assert (more.run_id, len(in_process)) == (report.run_id, 4)
    with pytest.raises(ScannerError, match=r"`controls` has 'none', which must be one of energy, directions, scale"):
        run(folder, text, store, controls=("none",))


def test_accuracy_of_a_probe_and_pruning(tmp_path: Path, in_process: list[Any]) -> None:
    folder, store = save(tmp_path / "m", "bert", "features"), tmp_path / "store"
    report = run(folder, table_file(tmp_path), store, metric="accuracy", by="all", sets="pruning")
    pruned = open_store(str(store)).query("guided_pruning", run=report.run_id).to_pylist()
    assert [row["percent"] for row in pruned] == [10, 20, 30, 50]
    assert all(row[name] is not None for row in pruned for name in ("most_random", "smallest", "random"))
    assert {row["examples"] for row in rows(store)} == {12}
    # The labels alternate: each half has both classes, and the first word determines the class.
    assert all(row["baseline"] >= 0.75 for row in rows(store))


def test_a_point_that_fails_is_told_and_tried_again(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text, store = save(tmp_path / "m", "gpt2"), text_file(tmp_path), tmp_path / "store"
    original = placing.place_matrices

    def fails(model: Any, refs: Any) -> Any:
        if refs[0].role == "key":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, refs)

    monkeypatch.setattr(placing, "place_matrices", fails)
    report = run(folder, text, store, roles=("key", "query"), sets="0:2", random_sets=0)
    assert report.failed == {"key 0-1 range:0:2": "OutOfMemoryError: CUDA out of memory"}
    monkeypatch.setattr(placing, "place_matrices", original)
    in_process.clear()
    assert run(folder, text, store, roles=("key", "query"), sets="0:2", random_sets=0).failed == {}
    assert [task.roles for task in in_process] == ["key"]


@pytest.mark.parametrize("metric", ["perplexity", "kl"])
def test_a_point_that_is_no_number_is_told_and_the_others_go_on(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    folder, text, store = save(tmp_path / "m", "gpt2"), text_file(tmp_path), tmp_path / "store"
    original = AblationTask.without

    @contextmanager
    def overflows(task: Any, context: Any, model: Any) -> Iterator[Any]:
        with original(task, context, model) as counts:
            norm = model.transformer.ln_f.bias
            kept = norm.clone()
            if task.roles == "key":
                norm.fill_(math.nan)
            yield counts
            norm.copy_(kept)

    monkeypatch.setattr(AblationTask, "without", overflows)
    wanted: dict[str, Any] = {"roles": ("key", "query"), "sets": "0:2", "random_sets": 0, "metric": metric}
    report = run(folder, text, store, **wanted)
    assert report.failed == {
        "key 0-1 range:0:2": f"the {metric} of the model is not a number: the model overflows, or its weights contain NaN"
    }
    assert {row["roles"] for row in rows(store)} == {None, "query"}


@pytest.mark.parametrize("metric", ["perplexity", "kl", "accuracy"])
def test_an_intact_model_that_is_no_number_ends_the_run(
    tmp_path: Path, in_process: list[Any], metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = save(tmp_path / "m", "llama"), text_file(tmp_path)
    original = models.load_model

    def half(*arguments: Any, **options: Any) -> Any:
        model = original(*arguments, **options)
        model.model.norm.weight.fill_(6e4)  # times a row of the head this overflows float16
        model.lm_head.weight.fill_(9.0)
        return model

    monkeypatch.setattr(models, "load_model", half)
    reference = table_file(tmp_path) if metric == "accuracy" else text
    with pytest.raises(
        ScannerError, match=rf"the {metric} of the model is .*: float16 may overflow, try `dtype` float32$"
    ):
        run(folder, reference, tmp_path / "store", metric=metric, roles=("key",), sets="0:2", dtype="float16")


def test_smaller_batches_stand_beside_the_point_that_needed_them(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text, store = save(tmp_path / "m", "gpt2"), text_file(tmp_path), tmp_path / "store"
    original, calls = Sequences.batch, []

    def scarce(data: Sequences, indices: list[int], padding: int) -> Any:
        calls.append(len(indices))
        if len(calls) > 1 and len(indices) > 2:  # there is enough memory for the intact model
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return original(data, indices, padding)

    monkeypatch.setattr(Sequences, "batch", scarce)
    report = run(folder, text, store, roles=("key",), sets="0:2", random_sets=0)
    assert report.failed == {}
    reduced = {row["set"]: row["batch_tokens"] is not None for row in rows(store)}
    assert reduced == {"none": False, "range:0:2": True}


@pytest.mark.parametrize("where", ["load_model", "prepare"])
def test_what_stops_every_point_is_one_line_whatever_it_is(
    tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("cublas does not start\nat line 1")

    place: Any = models if where == "load_model" else Perplexity
    monkeypatch.setattr(place, where, fails)
    with pytest.raises(ScannerError, match=r"^RuntimeError: cublas does not start$"):
        run(save(tmp_path / "m", "gpt2"), text_file(tmp_path), tmp_path / "store")
    assert len(in_process) == 1


def test_a_pair_of_encoder_and_decoder_has_no_accuracy_and_that_is_said_at_once(
    tmp_path: Path, in_process: list[Any]
) -> None:
    folder = save(tmp_path / "m", "t5", "features")
    with pytest.raises(ScannerError, match=r"is an encoder-decoder model: accuracy can be measured on"):
        run(folder, table_file(tmp_path), tmp_path / "store", metric="accuracy")
    with pytest.raises(ScannerError, match=r"is not a causal language model: perplexity needs one$"):
        run(folder, text_file(tmp_path), tmp_path / "store")
    assert in_process == []


def test_bad_input_ends_before_a_worker_starts(tmp_path: Path, in_process: list[Any]) -> None:
    folder = save(tmp_path / "m", "llama")
    with pytest.raises(ScannerError, match="has 10 tokens, too short for a window of 16"):
        run(folder, text_file(tmp_path, 10), tmp_path / "store")
    with pytest.raises(ScannerError, match="no matrix with role 'router'"):
        run(folder, text_file(tmp_path), tmp_path / "store", roles=("router",))
    with pytest.raises(ScannerError, match="unknown set of singular values 'tenths'"):
        run(folder, text_file(tmp_path), tmp_path / "store", sets="tenths")
    with pytest.raises(ScannerError, match="`random_sets` must be at least 0, got -1"):
        run(folder, text_file(tmp_path), tmp_path / "store", random_sets=-1)
    assert in_process == []


def test_workers_on_ray_give_the_same_numbers(tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    folder, text = save(tmp_path / "m", "llama"), text_file(tmp_path)
    run(folder, text, tmp_path / "here", roles=("value",), sets="0:3")
    monkeypatch.undo()
    run(folder, text, tmp_path / "there", roles=("value",), sets="0:3", pool=PoolOptions(workers=2))
    here, there = (
        [(row["set"], row["value"], row["stderr"]) for row in rows(tmp_path / name)] for name in ("here", "there")
    )
    assert len(here) == 3
    assert here == there
