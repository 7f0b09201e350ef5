"""Labelled texts as a classifier sees them: token sequences with the number of their class, split into training and test."""

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

#: The split is the same for every seed of a fine-tuning: what differs is the head, dropout and the order of examples.
_SPLIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Examples(Sequences):
    """Token sequences with the index of the class of each."""

    labels: Integers

    def taken(self, indices: Sequence[int]) -> Examples:
        """Some of them, in this order."""
        part = self.part(indices)
        return Examples(ids=part.ids, types=part.types, labels=self.labels[list(indices)])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A classification task, ready for a model."""

    name: str
    classes: tuple[str, ...]
    train: Examples
    test: Examples
    padding: int
    """The token that fills up sequences."""
    digest: str
    """SHA-256 of all of this but the name: texts, labels, tokenizer, length and split decide it."""
    dropped: int
    """Texts that stand in the test part, too, and were therefore left out of training."""

    @property
    def majority(self) -> float:
        """The accuracy of always naming the class that is commonest in the test part."""
        return float(np.bincount(self.test.labels, minlength=len(self.classes)).max() / len(self.test))


def prepare(texts: Texts, tokenizer: Any, *, length: int, test_share: float, examples: int | None = None) -> Dataset:
    """Split labelled texts and make token sequences of them.

    Of every class the same share goes to the test part, drawn with a fixed seed; of the rest `examples` are drawn for training. A
    text (or pair) that is in the test part is not trained on, however often it stands in the file.

    Args:
        texts: with a label each.
        tokenizer: of the model that is trained.
        length: longest sequence; longer texts are cut at their end, of pairs the longer one.
        test_share: of all texts, between 0 and 1.
        examples: for training at most; None: all that are left.

    Raises:
        ScannerError: fewer than two classes, a class with a single text, nothing left to train on, or no padding token.
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
            f"{printable(texts.name)}: {len(chosen)} examples to train on hold fewer than two classes: more `examples` or a "
            "smaller `test_share`"
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
    """The token that fills up sequences of a batch: the tokenizer's own, else the one that ends a text.

    A decoder's classifier reads the last token that is no padding, so that not any token will do.

    Raises:
        ScannerError: the tokenizer has neither.
    """
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    raise ScannerError(
        f"the tokenizer for {printable(model)} has no padding token and none that ends a text: name one as pad_token in the "
        "checkpoint's tokenizer_config.json"
    )


def _key(texts: Texts, index: int) -> tuple[str, str]:
    return texts.items[index], texts.seconds[index] if texts.seconds else ""


def _split(texts: Texts, labels: Integers, classes: tuple[str, ...], test_share: float) -> tuple[list[int], list[int]]:
    """Indices for training and for testing, each in random order."""
    generator = np.random.default_rng(_SPLIT_SEED)
    train: list[int] = []
    test: list[int] = []
    for index, name in enumerate(classes):
        mine = generator.permutation(np.flatnonzero(labels == index))
        if len(mine) < 2:
            raise ScannerError(
                f"{printable(texts.name)}: label {printable(name)!r} stands at a single text: a class needs one to train on and "
                "one to test (are these labels classes?)"
            )
        count = min(len(mine) - 1, max(1, round(test_share * len(mine))))
        test += mine[:count].tolist()
        train += mine[count:].tolist()
    return [train[i] for i in generator.permutation(len(train))], [test[i] for i in generator.permutation(len(test))]


def encoded(
    texts: Texts, labels: Integers, chosen: Sequence[int], tokenizer: Any, length: int, padding: int
) -> Examples:
    """The chosen texts or pairs as sequences of at most `length` tokens: longer ones lose their end, of pairs the longer text its.

    Special tokens stay where they belong, and what a text spells is none; a text without a token becomes one of padding.
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
    """What finds the first character of every special token in a text: with a blank behind it the token is ordinary pieces.

    `split_special_tokens` of the tokenizers does not do: to T5's kind `</s>` is a piece of the vocabulary as well, which they find
    all the same. A single character cannot be split.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    found = sorted({name.strip() for name in names if len(name.strip()) > 1})
    return re.compile("|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in found) or "(?!)")
