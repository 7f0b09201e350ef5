"""Perplexity compared with the loss of transformers, divergence and accuracy with their definitions, errors with resampling."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from scanner.checkpoint import Selection
from scanner.errors import ScannerError
from scanner.experiments.nlp.accuracy import Choice, Classifier, Probe, labels_of
from scanner.experiments.nlp.evaluation import Divergence, Perplexity, Scores, Windows, summarize
from scanner.experiments.nlp.labels import Examples
from scanner.experiments.nlp.measures import _answer, _prompt, measurement
from scanner.experiments.nlp.models import load_model, load_tokenizer, model_place
from scanner.experiments.nlp.placing import open_target
from scanner.experiments.nlp.texts import Texts, TextSource, read_texts
from scanner.experiments.nlp.tokens import Batches, running_ids

from .calls import request
from .tiny import WORDS, save, table_file, text_file, words
from .tiny import tokenizer as word_tokenizer


def loaded(folder: Path, head: str = "causal") -> tuple[Any, Any]:
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    return load_model(place, head=head), load_tokenizer(place)  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "stride"), [(16, 16), (16, 8), (20, 7), (20, 20), (50, 50)])
def test_perplexity_is_that_of_the_strided_recipe_with_the_models_own_loss(
    tmp_path: Path, length: int, stride: int
) -> None:
    model, tokenizer = loaded(save(tmp_path, "llama"))
    ids = running_ids(tokenizer, read_texts(TextSource(reference=str(text_file(tmp_path)))), tokens=50)
    measure = Perplexity(windows=Windows.cut(ids, length=length, stride=stride))
    scores = measure.scores(model, None, Batches(0, 64))

    total, count, done = 0.0, 0, 0  # the recipe of transformers' documentation, "Perplexity of fixed-length models"
    for start in range(0, len(ids), stride):
        end = min(start + length, len(ids))
        piece = torch.from_numpy(ids[start:end].astype(np.int64))[None]
        target = piece.clone()
        target[:, : -(end - done)] = -100
        scored = int((target[0, 1:] != -100).sum())
        if scored:
            with torch.no_grad():
                total += float(model(input_ids=piece, labels=target).loss) * scored
            count += scored
        done = end
        if end == len(ids):
            break
    # The recipe does not score the first token of any window; without overlap these tokens are never scored.
    if stride < length:
        assert count == len(ids) - 1
    assert measure.tokens == count
    assert summarize("perplexity", scores).value == pytest.approx(math.exp(total / count), rel=1e-5)


def test_batches_of_any_size_give_the_same_scores(tmp_path: Path) -> None:
    model, tokenizer = loaded(save(tmp_path, "gpt2"))
    ids = running_ids(tokenizer, read_texts(TextSource(reference=str(text_file(tmp_path)))), tokens=100)
    measure = Perplexity(windows=Windows.cut(ids, length=12, stride=9))
    one, many = (measure.scores(model, None, Batches(0, size)) for size in (1, 1000))
    np.testing.assert_allclose(one.sums, many.sums, rtol=1e-5)


def test_divergence_is_zero_for_the_intact_model_and_right_for_another(tmp_path: Path) -> None:
    model, tokenizer = loaded(save(tmp_path, "llama"))
    ids = running_ids(tokenizer, read_texts(TextSource(reference=str(text_file(tmp_path)))), tokens=48)
    measure, batches = Divergence(windows=Windows.cut(ids, length=16)), Batches(0, 64)
    states = measure.prepare(model, batches)
    np.testing.assert_allclose(measure.scores(model, states, batches).sums, 0.0, atol=1e-4)
    pieces = [torch.from_numpy(ids[start : start + 16].astype(np.int64))[None] for start in range(0, 48, 16)]
    with torch.no_grad():
        before = [model(input_ids=piece).logits[0, :-1].double().log_softmax(-1) for piece in pieces]
        model.model.layers[1].mlp.down_proj.weight.mul_(0.5)
        after = [model(input_ids=piece).logits[0, :-1].double().log_softmax(-1) for piece in pieces]
    expected = [float((p.exp() * (p - q)).sum()) for p, q in zip(before, after, strict=True)]
    np.testing.assert_allclose(measure.scores(model, states, batches).sums, expected, rtol=1e-4)
    assert measure.tokens == 45


def test_standard_errors_are_those_of_resampled_windows() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(80, 120, 200).astype(float)
    base = Scores(sums=weights * (2.0 + 0.3 * rng.standard_normal(200)), weights=weights)
    other = Scores(sums=base.sums + weights * (0.1 + 0.05 * rng.standard_normal(200)), weights=weights)
    for metric, value in (("perplexity", np.exp), ("kl", lambda m: m)):
        drawn = rng.integers(0, 200, (4000, 200))
        means = [value(s.sums[drawn].sum(1) / weights[drawn].sum(1)) for s in (base, other)]
        alone, paired = summarize(metric, base), summarize(metric, other, base)
        assert alone.stderr == pytest.approx(means[0].std(), rel=0.06)
        assert paired.stderr == pytest.approx((means[1] - means[0]).std(), rel=0.06)
        assert paired.delta == pytest.approx(paired.value - alone.value)
        assert paired.stderr < alone.stderr  # the same windows: their common part cancels
    assert math.isnan(summarize("kl", Scores(sums=np.ones(1), weights=np.ones(1))).stderr)
    assert summarize("perplexity", Scores(sums=np.array([800.0]), weights=np.ones(1))).value == math.inf


def test_a_text_too_short_for_its_window_and_strides_that_are_none() -> None:
    with pytest.raises(ScannerError, match="has 9 tokens, too short for a window of 10"):
        Windows.cut(np.arange(9, dtype=np.int32), length=10)
    with pytest.raises(ScannerError, match="stride 11"):
        Windows.cut(np.arange(99, dtype=np.int32), length=10, stride=11)


@pytest.mark.parametrize(("kind", "classes"), [("bert", 2), ("bart", 3)])
def test_a_classifier_is_right_where_its_logits_say_so(tmp_path: Path, kind: str, classes: int) -> None:
    folder = save(tmp_path, kind, "classification", num_labels=classes)
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    task = TextSource(reference=str(table_file(tmp_path)))
    found = measurement(place, request(metric="accuracy", text=task))
    assert (found.head, type(found.measure)) == ("classification", Classifier)
    model, tokenizer = loaded(folder, "classification")
    texts = read_texts(task, labeled=True)
    with torch.no_grad():
        right = [
            model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits.argmax().item()
            == int(label)
            for text, label in zip(texts.items, texts.labels, strict=True)
        ]
    assert 0 < sum(right) < len(right)
    np.testing.assert_array_equal(found.measure.scores(model, None, Batches(0, 40)).sums, right)


@pytest.mark.parametrize("own", [0, None], ids=["the model's padding", "no padding"])
def test_a_decoders_classifier_reads_the_last_token_that_is_no_padding(tmp_path: Path, own: int | None) -> None:
    """The padding token of the tokenizer differs from that of the model, or the model has none."""
    folder = save(tmp_path, "llama", "classification", num_labels=2, pad_token_id=own)
    made = AutoTokenizer.from_pretrained(folder)
    made.pad_token, made.eos_token = None, "[SEP]"
    made.save_pretrained(folder)
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    task = TextSource(reference=str(table_file(tmp_path, count=60)))
    found = measurement(place, request(metric="accuracy", text=task))
    model, tokenizer = loaded(folder, "classification")
    texts = read_texts(task, labeled=True)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits.argmax() for text in texts.items]
    right = [int(one) == int(label) for one, label in zip(alone, texts.labels, strict=True)]
    assert 0 < sum(right) < 60
    scores = found.measure.scores(load_model(place, head="classification"), None, Batches(found.padding, 200))
    np.testing.assert_array_equal(scores.sums, right)


@pytest.mark.parametrize("metric", ["perplexity", "kl"])
def test_a_model_that_sees_what_it_predicts_is_told(tmp_path: Path, metric: str) -> None:
    model, _ = loaded(save(tmp_path / "both", "bert"))
    measure: Any = Divergence if metric == "kl" else Perplexity
    windows = Windows.cut(np.arange(4, 44, dtype=np.int32), length=20)
    with pytest.raises(
        ScannerError, match=f"BertLMHeadModel sees the tokens that it predicts .* {metric} needs a causal"
    ):
        measure(windows=windows).prepare(model, Batches(0, 64))
    decoder, _ = loaded(save(tmp_path / "decoder", "bert", is_decoder=True))
    measure(windows=windows).prepare(decoder, Batches(0, 64))


def test_a_prompt_that_is_too_long_loses_the_end_of_its_text(tmp_path: Path) -> None:
    """The prompt begins with the prefix, keeps the words around the text, and has no final token before the answer."""
    folder = save(tmp_path, "llama")
    word_tokenizer(special=True).save_pretrained(folder)  # [CLS] before and [SEP] after
    path = tmp_path / "long.csv"
    lines = ["text,second,label", f"{words(40)},w1,0", f"{words(3)},{words(30, 1)},1", "w2,w3,0", "w4,w5,1"]
    path.write_text("\n".join(lines))
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    task = TextSource(reference=str(path), second="second")
    wanted = request(metric="accuracy", text=task, prompt="w7 {text} w8 {second} w9", answers=("w5 w6", "w7"))
    measure: Any = measurement(place, replace(wanted, window=20)).measure
    number = {word: 4 + index for index, word in enumerate(WORDS)}
    for ids in measure.ids:
        assert len(ids) <= 18
        assert (ids[0], ids[1], ids[-1]) == (1, number["w7"], number["w9"])
        assert number["w8"] in ids.tolist()
        assert 2 not in ids.tolist()
    first, second = measure.ids[0].tolist(), measure.ids[1].tolist()
    assert len(first) >= 16, "no more is truncated than necessary"
    assert first[2:6] == [number[word] for word in words(40).split()[:4]]
    assert second[2:5] == [number[word] for word in words(3).split()]
    spelt = _prompt(word_tokenizer(), [], "{text} w1 {second}", "w2", "{text}", 9)
    assert word_tokenizer().decode(spelt) == "w2 w1 [UNK]", "a text is not a template"
    with pytest.raises(ScannerError, match="`window` leaves 3 tokens for the prompt, which has 4 without a text"):
        measurement(place, replace(wanted, window=5))


def test_an_answer_is_tokenised_as_it_stands_behind_the_prompt(tmp_path: Path) -> None:
    """Answers for a tokenizer that begins every text with a space."""
    pieces = ["▁", "▁yes", "▁no", ":", *"Labelyesno", "<unk>"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.Unigram([(piece, -10.0) for piece in vocabulary], unk_id=vocabulary["<unk>"]))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    whole = wrapped("Label: yes", add_special_tokens=False)["input_ids"]
    assert whole[-1] == vocabulary["▁yes"]
    assert _answer(wrapped, "{text}Label:", "yes").tolist() == [vocabulary["▁yes"]]


def test_a_second_text_is_for_accuracy(tmp_path: Path) -> None:
    place = model_place(open_target(str(save(tmp_path, "llama")), Selection()).checkpoint)
    with pytest.raises(ScannerError, match="perplexity reads one continuous text: omit `second`"):
        measurement(place, request(text=TextSource(reference=str(table_file(tmp_path)), second="label")))


def test_what_the_tokenizer_makes_of_a_text_identifies_a_measurement(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama")
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    requests = [
        request(text=TextSource(reference=str(text_file(tmp_path))), window=16, tokens=64),
        request(metric="accuracy", text=TextSource(reference=str(table_file(tmp_path)))),
    ]
    before = [measurement(place, request).parameters for request in requests]
    assert before == [measurement(place, request).parameters for request in requests]
    word_tokenizer(special=True).save_pretrained(folder)
    assert all(a != measurement(place, b).parameters for a, b in zip(before, requests, strict=True))


@pytest.mark.parametrize("head", ["classification", "features"])
def test_pairs_reach_a_model_as_its_tokenizer_makes_them(tmp_path: Path, head: str) -> None:
    """Types mark the two texts, the longer text is truncated, and the token that ends a pair is kept."""
    folder = save(tmp_path, "bert", head)
    path = tmp_path / "pairs.csv"
    lines = [f"{'w1 ' * (3 + 9 * (i % 2))},{'w2 ' * 4},{i // 2 % 2}" for i in range(8)]
    path.write_text("\n".join(["question,passage,label", *lines]))
    source = TextSource(reference=str(path), column="question", second="passage", label="label")
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    measure: Any = measurement(place, request(metric="accuracy", text=source, window=12)).measure
    short, long = measure.examples.ids[:2]
    assert short.tolist() == [1, 5, 5, 5, 2, 6, 6, 6, 6, 2]
    assert long.tolist() == [1, *[5] * 5, 2, *[6] * 4, 2][: len(long)]
    assert (len(long), long[-1]) == (12, 2)
    model, _ = loaded(folder, "classification" if head == "classification" else "own")
    seen: list[torch.Tensor] = []
    embedded = model.get_submodule(f"{'bert.' if head == 'classification' else ''}embeddings.token_type_embeddings")
    embedded.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    batches = Batches(0, 64)
    measure.scores(model, measure.prepare(model, batches), batches)
    assert seen
    assert all(types.any() for types in seen)
    with pytest.raises(ScannerError, match="at least 8 tokens, got `window` 7"):
        measurement(place, request(metric="accuracy", text=source, window=7))


def test_a_language_model_chooses_the_likelier_answer(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama")
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    task = TextSource(reference=str(table_file(tmp_path)))
    wanted = request(metric="accuracy", text=task, prompt="{text} w9", answers=("w5 w6", "w7"))
    measure = measurement(place, wanted).measure
    assert isinstance(measure, Choice)
    model, tokenizer = loaded(folder)
    texts = read_texts(task, labeled=True)
    expected = []
    for text, label in zip(texts.items, texts.labels, strict=True):
        likelihoods = []
        for answer in ("w5 w6", "w7"):
            ids = torch.tensor(tokenizer(f"{text} w9 {answer}")["input_ids"])[None]
            count = len(answer.split())
            with torch.no_grad():
                log_p = model(input_ids=ids).logits[0].log_softmax(-1)
            likelihoods.append(sum(float(log_p[-1 - i - 1, ids[0, -1 - i]]) for i in range(count)))
        expected.append(int(np.argmax(likelihoods)) == int(label))
    np.testing.assert_array_equal(measure.scores(model, None, Batches(0, 60)).sums, expected)
    with pytest.raises(ScannerError, match="`answers` has 3 words for 2 classes"):
        measurement(place, request(metric="accuracy", text=task, answers=("a", "b", "c")))
    with pytest.raises(ScannerError, match="`answers` w5,w5: every class needs a different answer"):
        measurement(place, request(metric="accuracy", text=task, answers=("w5", "w5")))
    with pytest.raises(ScannerError, match=r"`prompt` contains \{txt\}: only \{text\} and \{second\} are replaced"):
        measurement(place, request(metric="accuracy", text=task, answers=("w5", "w6"), prompt="{text} {txt}"))
    with pytest.raises(ScannerError, match="`window` 2 is too small for a prompt and an answer of 2 tokens"):
        measurement(place, request(metric="accuracy", text=task, answers=("w5 w6", "w7"), window=2))
    with pytest.raises(ScannerError, match=r"`prompt` must contain \{text\}"):
        measurement(place, request(metric="accuracy", text=task, prompt="text"))


def test_a_probe_on_an_encoders_features_learns_what_the_first_word_tells(tmp_path: Path) -> None:
    folder = save(tmp_path, "bert", "features")
    place = model_place(open_target(str(folder), Selection()).checkpoint)
    lines = ["text,label", *(f"w{(i // 2) % 2} w9,{'yes' if (i // 2) % 2 else 'no'}" for i in range(40))]
    path = tmp_path / "easy.csv"
    path.write_text("\n".join(lines))
    found = measurement(place, request(metric="accuracy", text=TextSource(reference=str(path))))
    assert isinstance(found.measure, Probe)
    model, _ = loaded(folder, "own")
    prepared = found.measure.prepare(model, Batches(0, 64))
    assert found.measure.scores(model, prepared, Batches(0, 64)).sums.tolist() == [1.0] * 20


@pytest.mark.parametrize("labels", [[0, 1] * 20, [0] * 20 + [1] * 20, [0, 1, 1, 0] * 10, [0] * 38 + [1] * 2])
def test_a_probe_is_fitted_and_tested_on_half_of_every_class(tmp_path: Path, labels: list[int]) -> None:
    model, _ = loaded(save(tmp_path, "bert", "features"), "own")
    ids = tuple(np.array([1, 4 + label, 13, 2], np.int32) for label in labels)
    probe = Probe(examples=Examples(ids=ids, types=(), labels=np.array(labels)))
    batches = Batches(0, 64)
    assert probe.scores(model, probe.prepare(model, batches), batches).sums.tolist() == [1.0] * 20
    assert (probe.units, probe.tokens) == (20, 80)


def test_a_probe_needs_a_class_with_two_texts(tmp_path: Path) -> None:
    place = model_place(open_target(str(save(tmp_path, "bert", "features")), Selection()).checkpoint)
    path = tmp_path / "two.csv"
    path.write_text("text,label\nw1,a\nw2,b\n")
    with pytest.raises(ScannerError, match=r"two\.csv: every class has a single text"):
        measurement(place, request(metric="accuracy", text=TextSource(reference=str(path))))


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (("good", "bad"), ("bad", "good"), [1, 0]),
        (("positive", "Negative"), ("POSITIVE", "NEGATIVE"), [0, 1]),
        (("B", "b"), ("b", "B"), [1, 0]),
        (("2", "1"), ("LABEL_0", "LABEL_1", "LABEL_2"), [2, 1]),
        (("2", "1"), ("2", "1"), [0, 1]),  # names come before indices
        (("1", "0"), ("same", "same"), [1, 0]),
    ],
)
def test_labels_are_a_classifiers_names_or_its_indices(
    labels: tuple[str, ...], names: tuple[str, ...], indices: list[int]
) -> None:
    texts = Texts(name="t", items=("a",) * len(labels), whole=False, labels=labels)
    assert labels_of(texts, names).tolist() == indices


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("neg", "pos"), ("POSITIVE", "NEGATIVE")),
        (("1", "2"), ("LABEL_0", "LABEL_1")),
        (("-1", "1"), ("LABEL_0", "LABEL_1")),
        (("0", "good"), ("bad", "good")),
        (("b", "c"), ("B", "b ", "C", "c")),
        (("good", "Good"), ("good", "bad")),
        (("0", "1"), ("LABEL_0",)),
    ],
)
def test_labels_that_a_classifier_does_not_know_are_not_guessed(
    labels: tuple[str, ...], names: tuple[str, ...]
) -> None:
    texts = Texts(name="t", items=("a",) * len(labels), whole=False, labels=labels)
    said = rf"t: labels \({', '.join(sorted(labels))}\) are neither classes .* \({', '.join(names)}\) nor their indices"
    with pytest.raises(ScannerError, match=said):
        labels_of(texts, names)


def test_answers_are_told_beside_their_labels(tmp_path: Path) -> None:
    place = model_place(open_target(str(save(tmp_path, "llama")), Selection()).checkpoint)
    path = tmp_path / "task.csv"
    path.write_text("text,label\nw1,True\nw2,False\nw3,True\n")
    wanted = request(metric="accuracy", text=TextSource(reference=str(path)), answers=("no", "yes"))
    found = measurement(place, wanted)
    assert isinstance(found.measure, Choice)
    assert found.measure.labels.tolist() == [1, 0, 1]
    assert found.described.endswith('(choice); answers: False="no", True="yes"')
    swapped = measurement(place, replace(wanted, answers=("yes", "no")))
    assert swapped.parameters != found.parameters


def test_tokens_that_do_not_fill_a_window_are_named(tmp_path: Path) -> None:
    place = model_place(open_target(str(save(tmp_path, "llama")), Selection()).checkpoint)
    text = TextSource(reference=str(text_file(tmp_path, 50)))
    with pytest.raises(
        ScannerError, match=r"^`tokens` 20 does not fill a window of 32: increase `tokens` or reduce `win"
    ):
        measurement(place, request(text=text, tokens=20, window=32))
    with pytest.raises(ScannerError, match=r"^the text has 50 tokens, too short for a window of 64: give more text"):
        measurement(place, request(text=text))


def test_labels_and_metrics_that_do_not_fit_a_model(tmp_path: Path) -> None:
    texts = Texts(name="t", items=("a", "b", "c"), whole=False, labels=("10", "9", "word"))
    assert labels_of(texts, ["word", "10", "9"]).tolist() == [1, 2, 0]
    encoder = model_place(open_target(str(save(tmp_path, "bert", "features")), Selection()).checkpoint)
    text = TextSource(reference=str(text_file(tmp_path)))
    with pytest.raises(ScannerError, match="not a causal language model: perplexity needs one"):
        measurement(encoder, request(text=text))
    decoder = model_place(open_target(str(save(tmp_path / "d", "llama")), Selection()).checkpoint)
    with pytest.raises(ScannerError, match=r"`window` is 65, but .* takes at most 64 tokens"):
        measurement(decoder, request(text=text, window=65))
    assert len(words(3).split()) == 3
