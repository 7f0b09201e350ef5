"""Labeled texts as input of a classifier: token sequences with class indices, split into training and test examples."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.experiments.nlp.texts import CHARACTERS_PER_TOKEN, Texts
from scanner.experiments.nlp.tokens import Sequences, marked

Integers = NDArray[np.int64]

#: The split does not depend on the seed of a fine-tuning; the head, dropout and the order of the examples do.
_SPLIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Examples(Sequences):
    """Token sequences and the class index of each."""

    labels: Integers

    def taken(self, indices: Sequence[int]) -> Examples:
        """Return the selected examples in this order."""
        part = self.part(indices)
        return Examples(ids=part.ids, types=part.types, labels=self.labels[list(indices)])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A tokenized classification task."""

    name: str
    classes: tuple[str, ...]
    train: Examples
    test: Examples
    padding: int
    """Padding token."""
    digest: str
    """SHA-256 of everything except the name; depends on texts, labels, tokenizer, length and split."""
    dropped: int
    """Number of texts left out of training because they are also in the test part."""

    @property
    def majority(self) -> float:
        """Accuracy of always predicting the most frequent class of the test part."""
        return float(np.bincount(self.test.labels, minlength=len(self.classes)).max() / len(self.test))


def prepare(texts: Texts, tokenizer: Any, *, length: int, test_share: float, examples: int | None = None) -> Dataset:
    """Split labeled texts into training and test examples and tokenize them.

    The test part holds the same share of every class, drawn with a fixed seed; `examples` of the others are drawn for training. A
    text (or pair) in the test part is not used for training, even if the file contains it several times.

    Args:
        texts: labeled texts.
        tokenizer: tokenizer of the model that is trained.
        length: longest sequence, in tokens. Longer texts are truncated at the end; of a pair, the longer text.
        test_share: share of all texts in the test part, between 0 and 1.
        examples: largest number of training examples; None: all remaining texts.

    Raises:
        ScannerError: there are fewer than two classes, a class has a single text, the training part has fewer than two classes,
            or the tokenizer has no padding token.
    """
    classes = texts.classes
    padding = padding_token(tokenizer, texts.name)
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[label] for label in texts.labels], dtype=np.int64)
    train, test = _split(texts, labels, classes, test_share)
    seen = {_key(texts, index) for index in test}
    fresh = [index for index in train if _key(texts, index) not in seen]
    chosen = fresh if examples is None else fresh[:examples]
    if len({int(labels[index]) for index in chosen}) < 2:
        raise ScannerError(
            f"{printable(texts.name)}: the {len(chosen)} training examples have fewer than two classes: increase `examples` or "
            "reduce `test_share`"
        )
    trained, tested = (encoded(texts, labels, part, tokenizer, length, padding) for part in (chosen, test))
    content = hashlib.sha256(repr((classes, padding)).encode())
    for part in (trained, tested):
        content.update(part.labels.tobytes())
        for one in (*part.ids, *part.types):
            content.update(len(one).to_bytes(4) + one.tobytes())
    return Dataset(
        name=texts.name,
        classes=classes,
        train=trained,
        test=tested,
        padding=padding,
        digest=content.hexdigest(),
        dropped=len(train) - len(fresh),
    )


def padding_token(tokenizer: Any, model: str) -> int:
    """Return the padding token of the tokenizer, or else its end-of-text token.

    The classifier of a decoder reads the last token that is not padding, so the choice of the token matters.

    Raises:
        ScannerError: the tokenizer has neither.
    """
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    raise ScannerError(
        f"the tokenizer for {printable(model)} has neither a padding nor an end-of-text token: set pad_token in the "
        "tokenizer_config.json of the checkpoint"
    )


def _key(texts: Texts, index: int) -> tuple[str, str]:
    return texts.items[index], texts.seconds[index] if texts.seconds else ""


def _split(texts: Texts, labels: Integers, classes: tuple[str, ...], test_share: float) -> tuple[list[int], list[int]]:
    """Return the indices for training and for testing, each in random order."""
    generator = np.random.default_rng(_SPLIT_SEED)
    train: list[int] = []
    test: list[int] = []
    for index, name in enumerate(classes):
        mine = generator.permutation(np.flatnonzero(labels == index))
        if len(mine) < 2:
            raise ScannerError(
                f"{printable(texts.name)}: label {printable(name)!r} has a single text, but a class needs one for training and "
                "one for testing (are these labels classes?)"
            )
        count = min(len(mine) - 1, max(1, round(test_share * len(mine))))
        test += mine[:count].tolist()
        train += mine[count:].tolist()
    return [train[i] for i in generator.permutation(len(train))], [test[i] for i in generator.permutation(len(test))]


def encoded(
    texts: Texts, labels: Integers, chosen: Sequence[int], tokenizer: Any, length: int, padding: int
) -> Examples:
    """Tokenize the chosen texts or pairs to at most `length` tokens; longer texts are truncated at the end, of a pair the longer.

    The special tokens of the tokenizer are kept. Special tokens spelled out in a text are treated as ordinary text. A text without
    any token becomes one padding token.
    """
    limit = CHARACTERS_PER_TOKEN * length
    spelt, pairs = _special(tokenizer), bool(texts.seconds)
    columns = [
        [spelt.sub(r"\g<0> ", column[index][:limit]) for index in chosen]
        for column in ((texts.items, texts.seconds) if pairs else (texts.items,))
    ]
    found = tokenizer(*columns, truncation=True, max_length=length, return_token_type_ids=pairs, verbose=False)
    ids = tuple(np.array(one or [padding], dtype=np.int32) for one in found["input_ids"])
    types = [one or [0] for one in found.get("token_type_ids") or ()]
    return Examples(ids=ids, types=marked(types), labels=labels[list(chosen)])


def _special(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern for the first character of every special token: a space after it makes the token ordinary text.

    `split_special_tokens` of the tokenizers is not sufficient: in vocabularies like that of T5, `</s>` is an ordinary piece as
    well and is still found. Special tokens of a single character cannot be split.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    found = sorted({name.strip() for name in names if len(name.strip()) > 1})
    return re.compile("|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in found) or "(?!)")
