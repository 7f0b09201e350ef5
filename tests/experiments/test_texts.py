"""Texts from files of every kind, their tokens, and errors for unsuitable files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig

from scanner.errors import ScannerError
from scanner.experiments.nlp.texts import Texts, TextSource, read_texts
from scanner.experiments.nlp.tokens import (
    Batch,
    Batches,
    Sequences,
    affixes,
    is_memory,
    padding_id,
    running_ids,
    sequences,
)

from .tiny import tokenizer

ROWS = [
    {"text": 'one, "two"', "label": "1", "kind": "a"},
    {"text": "three\tfour é", "label": "0", "kind": "b"},
    {"text": "", "label": "1", "kind": "b"},
]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        quote = '"{}"'.format if path.suffix == ".csv" else str
        separator = "," if path.suffix == ".csv" else "\t"
        lines = [separator.join(rows[0])]
        doubled = '""' if path.suffix == ".csv" else '"'
        lines += [separator.join(quote(value.replace('"', doubled)) for value in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_table_gives_its_texts_and_labels_without_empty_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    texts = read_texts(TextSource(reference=str(path)), labeled=True)
    assert texts.items == ('one, "two"', "three\tfour é")
    assert texts.labels == ("1", "0")
    assert texts.classes == ("0", "1")
    assert not texts.whole
    kept = read_texts(TextSource(reference=str(path), where=("kind", "b")))
    assert kept.items == ("three\tfour é",)
    assert kept.digest != read_texts(TextSource(reference=str(path))).digest
    pairs = read_texts(TextSource(reference=str(path), column="kind", second="label"))
    assert (pairs.items, pairs.seconds) == (("a", "b", "b"), ("1", "0", "1"))


def test_half_a_pair_is_none(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"text": "a", "b": "x"}\n{"text": "c", "b": null}\n{"text": "", "b": "y"}\n{"text": "d", "b": "z"}\n'
    )
    pairs = read_texts(TextSource(reference=str(path), second="b"))
    assert (pairs.items, pairs.seconds) == (("a", "d"), ("x", "z"))


def test_a_tsv_file_may_begin_a_sentence_with_a_quote(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.tsv", [{"sentence": '"good', "label": "1"}, {"sentence": "bad", "label": "0"}])
    assert read_texts(TextSource(reference=str(path))).items == ('"good', "bad")


def test_any_other_file_is_one_running_text(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes("\ufeffCall me.\n".encode())
    texts = read_texts(TextSource(reference=str(path)))
    assert texts.whole
    assert texts.items == ("Call me.\n",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", "a.txt is empty"),
        ("a.txt", b"caf\xe9", r"not UTF-8 \(byte 3\)"),
        ("a.csv", b"caf\xe9", "not UTF-8"),
        ("a.csv", b"text,label\n", "a.csv is empty"),
        ("a.csv", b"text,label\nx\n", "line 2: the number of fields differs"),
        ("a.csv", b"text,a,text\nx,1,y\n", "has two columns 'text'"),
        ("a.csv", b"one,two\nx,y\n", "no text column found among one, two"),
        ("a.jsonl", b'{"text": "x"}\n{', "line 2 is not JSON"),
        ("a.jsonl", b"[1]", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": 1}', "column 'text' is not text"),
        ("a.jsonl", b'{"text": "x"}\n{"sentence": "y"}', "row 2 has no column 'text': it has sentence"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_does_not_serve_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ScannerError, match=message) as raised:
        read_texts(TextSource(reference=str(path), column=None))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("column", ["text", "other", "label"])
def test_half_a_character_is_named_with_its_row(tmp_path: Path, column: str) -> None:
    """JSON can contain an unpaired surrogate, which tokenizers reject."""
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "other": "b", "label": "c"}] * 2)
    source = TextSource(reference=str(path), second="other")
    assert len(read_texts(source, labeled=True).items) == 2
    with path.open("a") as file:
        file.write("\n" + json.dumps({"text": "a", "other": "b", "label": "c"} | {column: "d\ud83d"}))
    with pytest.raises(
        ScannerError, match=rf"row 3: column '{column}' has an unpaired surrogate \(\\ud83d\)"
    ) as raised:
        read_texts(source, labeled=True)
    assert "\n" not in str(raised.value)


def test_strings_of_parquet_that_are_not_utf_8_are_one_line(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9"], pa.binary())
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(2, *raw.buffers()[1:])}), path)
    with pytest.raises(ScannerError, match=r"rows\.parquet has a string column that is not UTF-8: .*$") as raised:
        read_texts(TextSource(reference=str(path)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("True", "False"), ("False", "True")),
        (("0", "1", "-1"), ("-1", "0", "1")),
        (("10", "9", "+2"), ("+2", "9", "10")),
        (("10", "9", "word"), ("10", "9", "word")),
        (("²", "10", "1"), ("1", "10", "²")),
        (("neutral", "bad", "good"), ("bad", "good", "neutral")),
    ],
)
def test_classes_are_sorted_by_value_or_by_alphabet(labels: tuple[str, ...], classes: tuple[str, ...]) -> None:
    assert Texts(name="t", items=("a",) * len(labels), whole=False, labels=labels).classes == classes


LABEL_FILES = [".jsonl", ".parquet"]


def labelled(folder: Path, suffix: str, labels: list[object]) -> Path:
    """A table with these labels, of any type."""
    return write(folder / f"rows{suffix}", [{"text": f"w{i}", "label": label} for i, label in enumerate(labels)])


@pytest.mark.parametrize("suffix", LABEL_FILES)
@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        ([0.0, 1.0, -0.0], ("0", "1", "0")),
        ([0.5, 1.0, math.inf], ("0.5", "1", "inf")),
        (["pos", "pos ", "\tneg"], ("pos", "pos", "neg")),
        (["1.0", "1", "nan"], ("1.0", "1", "nan")),
        ([True, False, True], ("True", "False", "True")),
        ([3, 2, 1], ("3", "2", "1")),
    ],
)
def test_labels_are_the_same_however_they_are_stored(
    tmp_path: Path, suffix: str, cells: list[object], labels: tuple[str, ...]
) -> None:
    path = labelled(tmp_path, suffix, cells)
    assert read_texts(TextSource(reference=str(path)), labeled=True).labels == labels


@pytest.mark.parametrize("suffix", LABEL_FILES)
@pytest.mark.parametrize("cells", [[1.0, math.nan], [1.0, None], ["a", " "], ["a", ""]])
def test_a_row_without_a_label_is_named(tmp_path: Path, suffix: str, cells: list[object]) -> None:
    path = labelled(tmp_path, suffix, cells)
    with pytest.raises(ScannerError, match=r"row 2: column 'label' is empty$"):
        read_texts(TextSource(reference=str(path)), labeled=True)


def test_blanks_around_a_label_of_csv_make_no_class(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,0\nb,0 \nc, 1\n", "utf-8")
    assert read_texts(TextSource(reference=str(path)), labeled=True).classes == ("0", "1")


def test_columns_labels_and_places_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = str(write(tmp_path / "rows.csv", ROWS))
    with pytest.raises(ScannerError, match="no column 'words': it has text, label, kind"):
        read_texts(TextSource(reference=path, column="words"))
    with pytest.raises(ScannerError, match="no row with kind=z"):
        read_texts(TextSource(reference=path, where=("kind", "z")))
    with pytest.raises(ScannerError, match="two or more classes are needed, but all are 'a'"):
        _ = read_texts(TextSource(reference=path, label="kind", where=("kind", "a")), labeled=True).classes
    with pytest.raises(ScannerError, match="does not exist: give a file"):
        read_texts(TextSource(reference=str(tmp_path / "gone.txt")))
    with pytest.raises(ScannerError, match="is a folder"):
        read_texts(TextSource(reference=str(tmp_path)))
    novel = tmp_path / "novel.txt"
    novel.write_text("words")
    with pytest.raises(ScannerError, match="has no columns"):
        read_texts(TextSource(reference=str(novel)), labeled=True)


def test_a_data_set_of_the_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ScannerError, match=r"is not a file, and cannot be read as a data set of the Hub: no route$"):
        read_texts(TextSource(reference="owner/name:config:test"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: iter([{"text": f"{a} {k}"}]))
    found = read_texts(TextSource(reference="owner/name:config:test"))
    assert found.items == ("('owner/name', 'config') {'split': 'test', 'streaming': True}",)


def test_of_a_data_set_of_the_hub_no_more_is_read_than_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    read: list[int] = []

    def endless() -> Iterator[dict[str, str]]:
        for number in itertools.count():
            read.append(number)
            yield {"text": "word " * 100, "label": str(number % 2)}

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: endless())
    source = TextSource(reference="owner/name")
    assert len(read_texts(source, tokens=100).items) == 7  # 500 characters each, at most 32 per token
    assert len(read_texts(source, tokens=100, length=10).items) == 10
    assert len(read) == 17


def test_a_running_text_is_cut_with_special_tokens_around_each_piece() -> None:
    made = tokenizer(special=True)
    assert affixes(made) == ([1], [2])
    assert affixes(tokenizer()) == ([], [])
    texts = Texts(name="t", items=(" ".join(f"w{i}" for i in range(25)),), whole=True)
    pieces = sequences(made, texts, length=10).ids
    assert [list(piece) for piece in pieces] == [[1, *range(4 + 8 * i, 12 + 8 * i), 2] for i in range(3)]
    assert len(sequences(made, texts, length=10, tokens=20)) == 2
    assert list(running_ids(tokenizer(), texts, tokens=5)) == [4, 5, 6, 7, 8]
    with pytest.raises(ScannerError, match="text t has 25 tokens, too short for a window of 38"):
        sequences(made, texts, length=40)


def test_a_window_holds_more_than_special_tokens() -> None:
    made = tokenizer(special=True)
    novel = Texts(name="t", items=("w0 w1 w2",), whole=True)
    rows = Texts(name="t", items=("w0 w1 w2",), whole=False)
    pairs = Texts(name="t", items=("w0 w1 w2",), whole=False, seconds=("w3 w4",))
    for texts, special in ((novel, 2), (rows, 2), (pairs, 3)):
        for length in (1, 2, special):
            said = f"`window` {length} has no room for text: the tokenizer adds {special} special tokens, so give at least "
            said += str(special + 1)
            with pytest.raises(ScannerError, match=said):
                sequences(made, texts, length=length)
        assert {len(one) for one in sequences(made, texts, length=special + 1).ids} == {special + 1}
    with pytest.raises(ScannerError, match=r"`tokens` 3 is too small for text t: the tokenizer adds 3"):
        sequences(made, pairs, length=8, tokens=3)


def test_long_items_keep_the_token_that_ends_them_and_their_second_text() -> None:
    made = tokenizer(special=True)
    rows = Texts(name="t", items=("w0 w1 w2 w3", "w5"), whole=False)
    assert [list(one) for one in sequences(made, rows, length=4).ids] == [[1, 4, 5, 2], [1, 9, 2]]
    pairs = Texts(name="t", items=("w0 w1 w2 w3 w4 w5",), whole=False, seconds=("w7 w8",))
    assert [list(one) for one in sequences(made, pairs, length=7).ids] == [[1, 4, 5, 2, 11, 12, 2]]
    assert [list(one) for one in sequences(tokenizer(), pairs, length=4).ids] == [[4, 5, 11, 12]]


def test_the_last_of_the_tokens_are_not_spent_on_special_ones_alone() -> None:
    made = tokenizer(special=True)
    texts = Texts(name="t", items=("w0 w1 w2", "w3 w4 w5", "w6 w7 w8"), whole=False)
    for tokens, lengths in ((10, [5, 5]), (12, [5, 5]), (13, [3, 5, 5])):
        found = sequences(made, texts, length=5, tokens=tokens).ids
        assert sorted(map(len, found)) == lengths
        assert all((one[0], one[-1]) == (1, 2) for one in found)


def test_items_are_a_sequence_each_up_to_the_number_of_tokens() -> None:
    texts = Texts(name="t", items=("w0 w1 w2", "w3", "w4 w5"), whole=False)
    assert [list(one) for one in sequences(tokenizer(), texts, length=2).ids] == [[4, 5], [7], [8, 9]]
    assert [list(one) for one in sequences(tokenizer(), texts, length=2, tokens=5).ids] == [[4, 5], [7], [8, 9]]
    assert sequences(tokenizer(), texts, length=2, tokens=4).tokens == 4


@pytest.mark.parametrize("sorted_by_label", [True, False])
def test_rows_are_drawn_from_all_of_a_table_in_its_order(sorted_by_label: bool) -> None:
    labels = [i // 500 if sorted_by_label else i % 2 for i in range(1000)]
    texts = Texts(name="t", items=tuple(f"w{label} w{9 + i % 80}" for i, label in enumerate(labels)), whole=False)
    drawn = sequences(tokenizer(), texts, length=8, tokens=200).ids
    assert sum(map(len, drawn)) == 200
    first = [int(one[0]) - 4 for one in drawn]
    assert 30 < sum(first) < 70
    if sorted_by_label:
        assert first == sorted(first)
    again = sequences(tokenizer(), texts, length=8, tokens=200).ids
    assert [one.tolist() for one in drawn] == [one.tolist() for one in again]


def test_padding_is_masked_and_needs_no_padding_token() -> None:
    for own, padding, wanted in ((None, True, 0), (None, False, 0), (7, True, 7), (-1, True, 0)):
        assert padding_id(tokenizer(padding=padding), BertConfig(pad_token_id=own)) == wanted
    two = np.array([5, 6], np.int32), np.array([7], np.int32)
    batch = Sequences(ids=two).batch([0, 1], 9)
    assert batch.ids.tolist() == [[5, 6], [7, 9]]
    assert batch.mask.tolist() == [[1, 1], [1, 0]]
    assert batch.types is None
    types = np.array([0, 1], np.int32), np.array([1], np.int32)
    paired = Sequences(ids=two, types=types).batch([1, 0], 9)
    assert paired.ids.tolist() == [[7, 9], [5, 6]]
    assert paired.types is not None
    assert paired.types.tolist() == [[1, 0], [0, 1]]


def test_batches_that_do_not_fit_are_halved_and_that_is_recorded() -> None:
    ids = Sequences(ids=tuple(np.full(4, i, np.int32) for i in range(8)))
    seen: list[list[int]] = []

    def compute(batch: Batch, indices: list[int]) -> int:
        if len(indices) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(indices)
        return len(indices)

    batches = Batches(0, 32)
    assert batches.run(ids, compute) == [2, 2, 2, 2]
    assert sorted(index for group in seen for index in group) == list(range(8))
    assert batches.smallest == 8
    assert len(batches.run(ids, compute)) == 4

    def never(batch: Batch, indices: list[int]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ScannerError, match=r"one sequence of 4 tokens does not fit.*`window`"):
        batches.run(ids, never)


def test_memory_errors_of_the_cpu_are_recognised_and_no_others() -> None:
    cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    assert is_memory(cpu)
    assert is_memory(MemoryError())
    assert is_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_memory(RuntimeError("the written-to tensor refers to a single memory location"))
    ids = Sequences(ids=tuple(np.full(4, i, np.int32) for i in range(8)))

    def scarce(batch: Batch, indices: list[int]) -> int:
        if len(indices) > 2:
            raise cpu
        return len(indices)

    assert Batches(0, 32).run(ids, scarce) == [2, 2, 2, 2]

    def wrong(batch: Batch, indices: list[int]) -> int:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Batches(0, 32).run(ids, wrong)
