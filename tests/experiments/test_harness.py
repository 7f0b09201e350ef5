"""Tasks of lm-evaluation-harness, answered by the model of a worker; skipped without the package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scanner.checkpoint import open_checkpoint
from scanner.errors import ScannerError
from scanner.experiments.nlp.models import load_model, load_tokenizer, model_place
from scanner.experiments.nlp.options import MeasureOptions
from scanner.store import open_store

from .calls import ablate
from .tiny import save, words
from .tiny import tokenizer as tokenizer_of_words

needed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed"
)


def model_with_end(folder: Path) -> Path:
    """A small language model whose tokenizer has a token that ends a text."""
    saved = save(folder / "m", "llama")
    known = tokenizer_of_words()
    known.eos_token = "[SEP]"
    known.save_pretrained(saved)
    return saved


def define(folder: Path, name: str, output: str, documents: list[dict[str, object]], **more: object) -> Path:
    """A task in a folder of its own, with its documents."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in documents), "utf-8")
    definition = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": output,
        "doc_to_text": "{{text}}",
        **more,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(definition), "utf-8")  # JSON is YAML
    return folder


def choices(folder: Path, count: int = 12) -> tuple[Path, list[dict[str, Any]]]:
    documents: list[dict[str, Any]] = [
        {
            "text": words(5 + index % 3, index),
            "choices": [words(2, 100 + index), words(2, 200 + index)],
            "label": index % 2,
        }
        for index in range(count)
    ]
    scores = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    more = {"doc_to_choice": "{{choices}}", "doc_to_target": "label", "metric_list": scores}
    return define(folder, "choose", "multiple_choice", documents, **more), documents


@needed
def test_multiple_choice_is_what_likelihoods_of_the_answers_say(tmp_path: Path, in_process: list[Any]) -> None:
    folder, store = model_with_end(tmp_path), tmp_path / "store"
    tasks, documents = choices(tmp_path / "tasks")
    wanted = MeasureOptions(metric="lm-eval:choose", text=str(tasks))
    more: dict[str, Any] = {"roles": ("mlp_down",), "sets": "decile:10,0:16", "random_sets": 2, "store": str(store)}
    report = ablate(str(folder), wanted, **more)
    assert report.failed == {}
    place = model_place(open_checkpoint(str(folder)))
    model, tokenizer = load_model(place, head="causal"), load_tokenizer(place)

    def likelihood(text: str, answer: str) -> float:
        ids = tokenizer(f"{text} {answer}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(text)["input_ids"])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        return float(sum(logits[at - 1, ids[0, at]] for at in range(start, ids.shape[1])))

    expected = [
        float(np.argmax([likelihood(one["text"], answer) for answer in one["choices"]]) == one["label"])
        for one in documents
    ]
    found = {row["set"]: row for row in open_store(str(store)).sql("select * from ablations").to_pylist()}
    assert found["none"]["window_sums"] == expected
    assert found["none"]["metric"] == "lm-eval:choose"
    assert (found["none"]["dataset"], found["none"]["examples"]) == ("choose", 12)
    assert found["range:0:16"]["window_sums"] != expected  # the whole matrix is gone
    assert all(row["damage"] == pytest.approx(-found[row["set"]]["delta"]) for row in controls(store))
    in_process.clear()
    assert ablate(str(folder), wanted, **more).kept == report.total - 1
    assert in_process == []
    choices(tmp_path / "tasks", count=11)
    assert ablate(str(folder), wanted, **more).run_id != report.run_id  # other documents


def controls(store: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = open_store(str(store)).query("ablation_controls").to_pylist()
    assert found
    return found


@needed
def test_generated_answers_are_those_of_greedy_decoding(tmp_path: Path, in_process: list[Any]) -> None:
    folder, store = model_with_end(tmp_path), tmp_path / "store"
    place = model_place(open_checkpoint(str(folder)))
    model, tokenizer = load_model(place, head="causal"), load_tokenizer(place)
    documents: list[dict[str, object]] = []
    for index in range(6):
        ids = tokenizer(words(6, index), return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(3):
            with torch.inference_mode():
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(dim=-1)], dim=1)
        answer = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
        documents.append({"text": words(6, index), "answer": answer if index % 3 else "w0 w0 w0 w0"})
    tasks = define(
        tmp_path / "tasks",
        "generate",
        "generate_until",
        documents,
        doc_to_target="{{answer}}",
        generation_kwargs={"max_gen_toks": 3, "until": ["\n\n"], "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    report = ablate(
        str(folder),
        MeasureOptions(metric="lm-eval:generate", text=str(tasks / "generate.yaml")),
        roles=("mlp_down",),
        sets="0:16",
        random_sets=0,
        store=str(store),
    )
    assert report.failed == {}
    found = {row["set"]: row["window_sums"] for row in open_store(str(store)).sql("from ablations").to_pylist()}
    assert found["none"] == [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    assert sum(found["range:0:16"]) < 4.0


@needed
def test_tasks_that_cannot_be_measured_are_one_line(tmp_path: Path, in_process: list[Any]) -> None:
    folder = model_with_end(tmp_path)
    tasks, _ = choices(tmp_path / "tasks")

    def run(task: str, text: Path) -> None:
        ablate(str(folder), MeasureOptions(metric=f"lm-eval:{task}", text=str(text)), store=str(tmp_path / "store"))

    with pytest.raises(ScannerError, match=r"^lm-evaluation-harness cannot load task nowhere: "):
        run("nowhere", tasks)
    with pytest.raises(ScannerError, match="does not exist: give the folder or file with the definition of the task"):
        run("choose", tmp_path / "none")
    lower = [{"metric": "acc", "aggregation": "mean", "higher_is_better": False}]
    more = {"doc_to_choice": ["a", "b"], "doc_to_target": "label", "metric_list": lower}
    define(tmp_path / "tasks", "worse", "multiple_choice", [{"text": "w1", "label": 0}], **more)
    with pytest.raises(ScannerError, match="task worse has no metric that is averaged over documents, the larger the"):
        run("worse", tasks)
    tokenizer_of_words().save_pretrained(folder)
    with pytest.raises(ScannerError, match=r"has no token that ends a text, which lm-evaluation-harness needs$"):
        run("choose", tasks)
    assert in_process == []


def test_other_metrics_need_a_text(tmp_path: Path, in_process: list[Any]) -> None:
    folder = save(tmp_path / "m", "llama")
    with pytest.raises(ScannerError, match=r"^`text` is missing: perplexity needs a text$"):
        ablate(str(folder), MeasureOptions(), store=str(tmp_path / "store"))
    with pytest.raises(
        ScannerError, match=r"unknown `metric` 'loss': choose from perplexity, accuracy, kl, lm-eval:TASK"
    ):
        ablate(str(folder), MeasureOptions(metric="loss", text="x"), store=str(tmp_path / "store"))
