"""Small versions of the runs in docs/findings.md: real models and texts, compared with numpy and the loss of transformers."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from scanner.checkpoint import Selection, read_matrix
from scanner.experiments.nlp import models
from scanner.experiments.nlp.models import load_model, load_tokenizer, model_place
from scanner.experiments.nlp.placing import open_target
from scanner.experiments.nlp.texts import TextSource
from scanner.experiments.nlp.training import Recipe
from scanner.store import open_store

from .calls import ablate, finetune, measure_activations, request, without_ray


@pytest.fixture(scope="module")
def sentences(reviews: Path) -> list[tuple[str, str]]:
    """Sentences and labels of Rotten Tomatoes with alternating classes; in the file, one class follows the other."""
    with reviews.open(encoding="utf-8", newline="") as file:
        found = [(row["text"], row["label"]) for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    classes = [[one for one in found if one[1] == label] for label in sorted({label for _, label in found})]
    return [one for pair in zip(*classes, strict=False) for one in pair]


@pytest.fixture(scope="module")
def labelled(sentences: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "reviews.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(sentences[:240])
    return path


@pytest.fixture(scope="module")
def running_text(sentences: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "reviews.txt"
    path.write_text("\n".join(text for text, _ in sentences[:60]), "utf-8")
    return path


def test_overlaps_of_minilm_are_those_of_numpy(
    minilm: Path, labelled: Path, tmp_path: Path, in_process: list[Any]
) -> None:
    report = measure_activations(
        str(minilm),
        TextSource(reference=str(labelled)),
        selection=Selection(only=("mlp_up",), layers=(2,)),
        tokens=1_000_000,
        window=128,
        store=str(tmp_path),
    )
    assert (report.matrices, report.skipped, report.failed) == (1, {}, {})
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    module = "encoder.layer.2.intermediate.dense"
    seen: list[torch.Tensor] = []
    model.get_submodule(module).register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    with labelled.open(encoding="utf-8", newline="") as file, torch.no_grad():
        for row in csv.DictReader(file):
            model(**tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=128))
    hidden = torch.cat(seen).double().numpy()
    assert report.tokens == len(hidden)
    values, vectors = np.linalg.eigh(np.cov(hidden.T, bias=True))
    weight = model.get_submodule(module).weight.detach().double().numpy()
    right = np.linalg.svd(weight, full_matrices=False)[2]
    overlap = np.abs(right @ vectors)
    found = open_store(str(tmp_path)).sql('select * from "overlaps" where centred order by k').to_pylist()
    np.testing.assert_allclose([row["overlap"] for row in found], overlap.max(axis=1), atol=2e-4)
    np.testing.assert_allclose([row["peak"] for row in found], np.abs(right).max(axis=1), atol=1e-6)
    clear = np.sort(overlap, axis=1)[:, -1] - np.sort(overlap, axis=1)[:, -2] > 1e-3
    matches = np.array([row["match"] for row in found])
    assert (matches == 383 - overlap.argmax(axis=1))[clear].all()
    eigenvalues = np.array([row["eigenvalue"] for row in found])
    np.testing.assert_allclose(eigenvalues[clear], values[overlap.argmax(axis=1)][clear], rtol=1e-3, atol=1e-6)


def test_removal_from_smollm2_is_what_transformers_says_of_a_rebuilt_model(
    smollm2: Path, running_text: Path, tmp_path: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model of the worker is used afterward: it is slow to load, and must be intact again.
    loaded: list[Any] = []
    monkeypatch.setattr(
        models, "load_model", lambda *given, **more: loaded.append(load_model(*given, **more)) or loaded[-1]
    )
    wanted = request(metric="perplexity", text=TextSource(reference=str(running_text)), tokens=128, window=64)
    report = ablate(
        str(smollm2), wanted, roles=("mlp_down",), layers=(0, 29), sets="0:58", random_sets=0, store=str(tmp_path)
    )
    assert (report.points, report.failed) == (2, {})
    [row] = open_store(str(tmp_path)).query("ablation_curve").to_pylist()
    target = open_target(str(smollm2), Selection(only=("mlp_down",), layers=(0, 29)))
    place = model_place(target.checkpoint)
    [model], tokenizer = loaded, load_tokenizer(place)
    ids = tokenizer(running_text.read_text("utf-8"), return_tensors="pt").input_ids[:, :128]

    def perplexity() -> float:
        with torch.no_grad():
            losses = [float(model(input_ids=part, labels=part).loss) for part in ids.split(64, dim=1)]
        return math.exp(sum(losses) / len(losses))

    assert row["baseline"] == pytest.approx(perplexity(), rel=1e-4)
    for ref in target.inventory.matrices:
        u, s, vh = np.linalg.svd(read_matrix(target.checkpoint.source, ref).double().numpy(), full_matrices=False)
        s[:58] = 0.0
        layer = re.search(r"\d+", ref.tensor)
        assert layer is not None
        weight = model.get_parameter(f"model.layers.{layer[0]}.mlp.down_proj.weight")
        weight.data.copy_(torch.from_numpy(u * s @ vh))
    assert row["value"] == pytest.approx(perplexity(), rel=1e-3)
    assert row["value"] > 1.5 * row["baseline"]


def test_minilm_learns_from_reviews_and_not_without_its_largest_values(
    minilm: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    report = finetune(
        str(minilm),
        TextSource(reference=str(labelled)),
        orders=("tune-first",),
        deciles=(10,),
        seeds=1,
        recipe=Recipe(epochs=3, batch=16, rate=2e-4),
        length=48,
        test_share=0.3,
        store=str(tmp_path),
    )
    assert (report.points, report.failed, report.test) == (2, {}, 72)
    found = open_store(str(tmp_path)).sql('select "order", accuracy from finetunes').to_pylist()
    accuracy = {row["order"]: row["accuracy"] for row in found}
    assert accuracy["none"] > 0.65 > accuracy["tune-first"]
