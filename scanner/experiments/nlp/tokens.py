"""From texts to token sequences, and from sequences to padded batches that fit into memory."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.experiments.nlp.texts import CHARACTERS_PER_TOKEN, Texts

Ids = NDArray[np.int32]
Result = TypeVar("Result")

#: Padded tokens in one batch: on a CPU more is no faster, a GPU wants to be filled.
BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
#: Seed of the order in which rows of a table are drawn.
_DRAW_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences side by side: (count, longest) int64 tensors, `mask` 1 for a token and 0 for padding, `types` as in `Sequences`."""

    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor | None = None

    def inputs(self, model: Any, *, decoder: bool = False) -> dict[str, torch.Tensor]:
        """Arguments of a forward pass on the model's device; types for models that know them.

        With `decoder`, a decoder beside an encoder is given the same tokens. Without, the model makes its input of them itself, as
        classifiers do.
        """
        device = model.device
        ids, mask = self.ids.to(device), self.mask.to(device)
        found = {"input_ids": ids, "attention_mask": mask}
        if self.types is not None and _knows_types(model):
            found["token_type_ids"] = self.types.to(device)
        if decoder and getattr(model.config, "is_encoder_decoder", False):
            found |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        return found


def _knows_types(model: Any) -> bool:
    known = "token_type_ids" in inspect.signature(model.forward).parameters
    return known and getattr(model.config, "type_vocab_size", 0) >= 2


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Token sequences; `types` tells the two texts of each pair apart (empty: no pairs, or a tokenizer that does not mark them)."""

    ids: tuple[Ids, ...]
    types: tuple[Ids, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences, special ones included."""
        return sum(map(len, self.ids))

    @property
    def digest(self) -> str:
        """SHA-256 of ids and types: the text, and what the tokenizer made of it."""
        content = hashlib.sha256(len(self).to_bytes(8))
        for one in (*self.ids, *self.types):
            content.update(len(one).to_bytes(8) + one.astype(np.int32).tobytes())
        return content.hexdigest()

    def part(self, indices: Sequence[int]) -> Sequences:
        """Some of them, in this order."""
        types = tuple(self.types[index] for index in indices) if self.types else ()
        return Sequences(ids=tuple(self.ids[index] for index in indices), types=types)

    def batch(self, indices: Sequence[int], padding: int) -> Batch:
        """Some of them side by side, filled up on the right."""
        chosen = self.part(indices)
        shape = len(chosen), max(map(len, chosen.ids))
        padded, mask = np.full(shape, padding, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, one in enumerate(chosen.ids):
            padded[row, : len(one)], mask[row, : len(one)] = one, 1
        types = None
        if chosen.types:
            filled = np.zeros(shape, dtype=np.int64)
            for row, one in enumerate(chosen.types):
                filled[row, : len(one)] = one
            types = torch.from_numpy(filled)
        return Batch(ids=torch.from_numpy(padded), mask=torch.from_numpy(mask), types=types)


def marked(types: Sequence[Sequence[int]]) -> tuple[Ids, ...]:
    """Token types as `Sequences` has them: none where a tokenizer marks nothing with them."""
    return tuple(np.array(one, dtype=np.int32) for one in types) if any(any(one) for one in types) else ()


def encode(
    tokenizer: Any, text: str, second: str | None = None, *, special: bool = True, most: int | None = None
) -> list[int]:
    """The tokens of one text or pair, without a warning for long ones.

    With `most`, no more than so many: the tokenizer leaves out the end of the text, of pairs of the longer one, and keeps its
    special tokens; there must be room for these.
    """
    return _with_types(tokenizer, text, second, special=special, most=most)[0]


def _with_types(
    tokenizer: Any, text: str, second: str | None, *, special: bool = True, most: int | None = None
) -> tuple[list[int], list[int]]:
    """Tokens as `encode` gives them, and which text of a pair each belongs to: zero where the tokenizer does not tell."""
    pair = (text,) if second is None else (text, second)
    cut = {} if most is None else {"truncation": True, "max_length": most}
    found = tokenizer(*pair, add_special_tokens=special, return_token_type_ids=second is not None, verbose=False, **cut)
    ids = found["input_ids"]
    return ids, found.get("token_type_ids") or [0] * len(ids)


def affixes(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text: `[CLS]` and `[SEP]`, a BOS, nothing."""
    bare, full = encode(tokenizer, "a", special=False), encode(tokenizer, "a")
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def running_ids(tokenizer: Any, texts: Texts, *, tokens: int | None = None) -> Ids:
    """One sequence of at most `tokens` tokens: the running text, or the items of a table with an empty line between them.

    Special tokens that the tokenizer puts in front (a BOS) stand once, at the beginning.
    """
    text = texts.items[0] if texts.whole else "\n\n".join(texts.items)
    prefix, _ = affixes(tokenizer)
    if tokens is not None:
        text = text[: CHARACTERS_PER_TOKEN * tokens]
    ids = [*prefix, *encode(tokenizer, text, special=False)]
    return np.array(ids[:tokens], dtype=np.int32)


def sequences(tokenizer: Any, texts: Texts, *, length: int, tokens: int | None = None) -> Sequences:
    """Sequences of at most `length` tokens for a model's forward pass, `tokens` of them in all (None: everything).

    A running text is cut into pieces of equal length, each with the model's special tokens around it; what is left at its end is
    dropped. Items of a table are a sequence each, cut at `length` by the tokenizer; where `tokens` does not take all of them, they
    are drawn from the whole table, with a fixed seed, for many tables are sorted (by label, say). They come in the table's order.
    Special tokens count: the model sees them. Where `tokens` leaves room for nothing else, fewer are taken.

    Raises:
        ScannerError: a running text that does not fill one sequence, or sequences that hold nothing but special tokens.
    """
    if not texts.whole:
        return _drawn(tokenizer, texts, length, tokens)
    prefix, suffix = affixes(tokenizer)
    special = len(prefix) + len(suffix)
    _require_room(length, special)
    body = length - special
    text = texts.items[0] if tokens is None else texts.items[0][: CHARACTERS_PER_TOKEN * (tokens + length)]
    ids = encode(tokenizer, text, special=False)
    wanted = len(ids) // body if tokens is None else min(len(ids) // body, max(1, tokens // length))
    if wanted == 0:
        raise too_short(texts, len(ids), body)
    starts = range(0, wanted * body, body)
    return Sequences(
        ids=tuple(np.array([*prefix, *ids[start : start + body], *suffix], dtype=np.int32) for start in starts)
    )


def _drawn(tokenizer: Any, texts: Texts, length: int, tokens: int | None) -> Sequences:
    """Items of a table, a sequence each, in the table's order."""
    one = ("a", "a") if texts.seconds else ("a",)
    special = len(encode(tokenizer, *one)) - len(encode(tokenizer, *one, special=False))
    _require_room(length, special)
    if tokens is not None and tokens <= special:
        raise ScannerError(
            f"{tokens} tokens in all are wanted of text {printable(texts.name)}, and the tokenizer adds {special} special tokens "
            "to each of its rows: want more"
        )
    limit = CHARACTERS_PER_TOKEN * length
    count = len(texts.items)
    order = range(count) if tokens is None else np.random.default_rng(_DRAW_SEED).permutation(count).tolist()
    found: dict[int, tuple[list[int], list[int]]] = {}
    total = 0
    for index in order:
        room = length if tokens is None else min(length, tokens - total)
        if room <= special:
            break
        second = texts.seconds[index][:limit] if texts.seconds else None
        ids, types = _with_types(tokenizer, texts.items[index][:limit], second, most=room)
        if ids:
            found[index] = ids, types
        total += len(ids)
    chosen = [found[index] for index in sorted(found)]
    return Sequences(
        ids=tuple(np.array(ids, dtype=np.int32) for ids, _ in chosen), types=marked([types for _, types in chosen])
    )


def _require_room(length: int, special: int) -> None:
    if length <= special:
        raise ScannerError(
            f"`window` {length} has no room for text: the tokenizer adds {special} special tokens, a window of {special + 1} is "
            "the smallest"
        )


def too_short(texts: Texts, tokens: int, window: int) -> ScannerError:
    """The error for a text that does not fill one window."""
    return ScannerError(
        f"text {printable(texts.name)} has {tokens} tokens, too short for a window of {window}: "
        "give more text or a smaller `window`"
    )


def padding_id(tokenizer: Any, config: Any) -> int:
    """The token that fills up: the model's, for its classifier looks for the last token that is another; else the tokenizer's.

    Where neither has one any will do: it is masked in all that is computed.
    """
    known = (config.get_text_config(), "pad_token_id"), (tokenizer, "pad_token_id"), (tokenizer, "eos_token_id")
    for owner, name in known:
        value = getattr(owner, name, None)
        if isinstance(value, int) and value >= 0:
            return value
    return 0


#: Parts of the messages of torch's RuntimeErrors for it: its allocator on the CPU has no error of its own.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")


def is_memory(error: Exception) -> bool:
    """Whether an error says that memory does not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


class Batches:
    """Groups of sequences of like length, no group larger than fits: after an out-of-memory error half of it is tried.

    `smallest` is the number of padded tokens that groups were cut down to, None while all fitted.
    """

    def __init__(self, padding: int, batch_tokens: int) -> None:
        self.padding, self.batch_tokens = padding, batch_tokens
        self.smallest: int | None = None

    def of(self, model: Any) -> Batches:
        """The batches for a model: single sequences for a classifier that was not told what padding is, for it refuses others."""
        unaware = getattr(model.config.get_text_config(), "pad_token_id", None) is None
        return Batches(self.padding, 1) if unaware and "ForSequenceClassification" in type(model).__name__ else self

    def run(self, data: Sequences, compute: Callable[[Batch, list[int]], Result]) -> list[Result]:
        """`compute(batch, indices)` for all sequences, in a fixed order: shortest first, equal ones as they come.

        Raises:
            ScannerError: a single sequence does not fit into the device's memory.
        """
        results: list[Result] = []
        for group in self._groups(data.ids):
            results += self._run(data, group, compute)
        return results

    def _run(self, data: Sequences, group: list[int], compute: Callable[[Batch, list[int]], Result]) -> list[Result]:
        try:
            return [compute(data.batch(group, self.padding), group)]
        except (MemoryError, RuntimeError) as error:
            if not is_memory(error):
                raise
            size = len(group) * max(len(data.ids[i]) for i in group)
            if len(group) == 1:
                raise ScannerError(
                    f"one sequence of {size} tokens does not fit into the device's memory: a smaller `window`"
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.batch_tokens = self.smallest = min(self.batch_tokens, size // 2)
        half = len(group) // 2
        return self._run(data, group[:half], compute) + self._run(data, group[half:], compute)

    def _groups(self, ids: Sequence[Ids]) -> Iterator[list[int]]:
        group: list[int] = []
        for index in sorted(range(len(ids)), key=lambda i: len(ids[i])):
            if group and (len(group) + 1) * len(ids[index]) > self.batch_tokens:
                yield group
                group = []
            group.append(index)
        if group:
            yield group
