"""Token sequences from texts, and padded batches of sequences that fit into memory."""

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

#: Padded tokens in a batch: larger batches are not faster on a CPU, but are on a GPU.
BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
#: Seed for drawing rows of a table.
_DRAW_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded sequences: (count, longest) int64 tensors; `mask` is 1 for a token and 0 for padding, `types` as in `Sequences`."""

    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor | None = None

    def inputs(self, model: Any, *, decoder: bool = False) -> dict[str, torch.Tensor]:
        """Return the arguments of a forward pass on the device of the model; token types only for models that use them.

        With `decoder`, the decoder of an encoder-decoder model receives the same tokens. Otherwise the model derives the input of
        its decoder itself, as classifiers do.
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
    """Token sequences; `types` marks the two texts of each pair (empty without pairs, or if the tokenizer does not mark them)."""

    ids: tuple[Ids, ...]
    types: tuple[Ids, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences, including special tokens."""
        return sum(map(len, self.ids))

    @property
    def digest(self) -> str:
        """SHA-256 of ids and types; depends on the text and the tokenizer."""
        content = hashlib.sha256(len(self).to_bytes(8))
        for one in (*self.ids, *self.types):
            content.update(len(one).to_bytes(8) + one.astype(np.int32).tobytes())
        return content.hexdigest()

    def part(self, indices: Sequence[int]) -> Sequences:
        """Return the selected sequences in this order."""
        types = tuple(self.types[index] for index in indices) if self.types else ()
        return Sequences(ids=tuple(self.ids[index] for index in indices), types=types)

    def beginning(self, tokens: int) -> Sequences:
        """Return the first sequences, as few as have at least so many tokens; all of them if they have fewer."""
        before = np.cumsum([0, *map(len, self.ids)])[:-1]
        return self.part([index for index, count in enumerate(before) if count < tokens])

    def batch(self, indices: Sequence[int], padding: int) -> Batch:
        """Return the selected sequences as a batch, padded on the right."""
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
    """Return token types as in `Sequences`: empty if the tokenizer marks nothing with them."""
    return tuple(np.array(one, dtype=np.int32) for one in types) if any(any(one) for one in types) else ()


def encode(
    tokenizer: Any, text: str, second: str | None = None, *, special: bool = True, most: int | None = None
) -> list[int]:
    """Return the tokens of a text or pair, without the warning of transformers for long texts.

    With `most`, the tokenizer truncates the text (of a pair, the longer text) at the end to this number of tokens and keeps its
    special tokens, which must fit.
    """
    return _with_types(tokenizer, text, second, special=special, most=most)[0]


def _with_types(
    tokenizer: Any, text: str, second: str | None, *, special: bool = True, most: int | None = None
) -> tuple[list[int], list[int]]:
    """Return tokens as `encode` does, and the index of the text of each in its pair (0 if the tokenizer does not mark it)."""
    pair = (text,) if second is None else (text, second)
    cut = {} if most is None else {"truncation": True, "max_length": most}
    found = tokenizer(*pair, add_special_tokens=special, return_token_type_ids=second is not None, verbose=False, **cut)
    ids = found["input_ids"]
    return ids, found.get("token_type_ids") or [0] * len(ids)


def affixes(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer adds before and after a text: `[CLS]` and `[SEP]`, a BOS, or none."""
    bare, full = encode(tokenizer, "a", special=False), encode(tokenizer, "a")
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def running_ids(tokenizer: Any, texts: Texts, *, tokens: int | None = None) -> Ids:
    """Return one sequence of at most `tokens` tokens: the continuous text, or the items of a table joined by empty lines.

    Special tokens that the tokenizer adds before a text (a BOS) occur once, at the beginning.
    """
    text = texts.items[0] if texts.whole else "\n\n".join(texts.items)
    prefix, _ = affixes(tokenizer)
    if tokens is not None:
        text = text[: CHARACTERS_PER_TOKEN * tokens]
    ids = [*prefix, *encode(tokenizer, text, special=False)]
    return np.array(ids[:tokens], dtype=np.int32)


def sequences(tokenizer: Any, texts: Texts, *, length: int, tokens: int | None = None) -> Sequences:
    """Return sequences of at most `length` tokens for forward passes, with `tokens` tokens in total (None: the whole text).

    A continuous text is cut into pieces of equal length, each with the special tokens of the model around it; the remainder is
    dropped. Each item of a table is one sequence, which the tokenizer truncates to `length`. If `tokens` does not cover all items,
    they are drawn from the whole table with a fixed seed, because many tables are sorted (by label, for example), and returned in
    the order of the table. Special tokens count. If the remaining tokens suffice only for special tokens, no more items are drawn.

    Raises:
        ScannerError: a continuous text does not fill one sequence, or sequences have room only for special tokens.
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
    """Return items of a table, one sequence each, in the order of the table."""
    one = ("a", "a") if texts.seconds else ("a",)
    special = len(encode(tokenizer, *one)) - len(encode(tokenizer, *one, special=False))
    _require_room(length, special)
    if tokens is not None and tokens <= special:
        raise ScannerError(
            f"`tokens` {tokens} is too small for text {printable(texts.name)}: the tokenizer adds {special} special tokens to "
            "each row"
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
            f"`window` {length} has no room for text: the tokenizer adds {special} special tokens, so give at least "
            f"{special + 1}"
        )


def too_short(texts: Texts, tokens: int, window: int) -> ScannerError:
    """Return the error for a text that does not fill one window."""
    return ScannerError(
        f"text {printable(texts.name)} has {tokens} tokens, too short for a window of {window}: "
        "give more text or a smaller `window`"
    )


def padding_id(tokenizer: Any, config: Any) -> int:
    """Return the padding token of the model, or else of the tokenizer.

    That of the model comes first because its classifier reads the last token that is different. If neither has one, any token can
    be used, because padding is masked in all computations.
    """
    known = (config.get_text_config(), "pad_token_id"), (tokenizer, "pad_token_id"), (tokenizer, "eos_token_id")
    for owner, name in known:
        value = getattr(owner, name, None)
        if isinstance(value, int) and value >= 0:
            return value
    return 0


#: Parts of messages of RuntimeErrors for lack of memory: the CPU allocator of torch has no exception type for it.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")


def is_memory(error: Exception) -> bool:
    """Return whether an error means that there is not enough memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


class Batches:
    """Runs batches of sequences of similar length; a batch that runs out of memory is repeated in halves.

    `smallest` is the number of padded tokens that batches were reduced to, or None if all fitted into memory.
    """

    def __init__(self, padding: int, batch_tokens: int) -> None:
        self.padding, self.batch_tokens = padding, batch_tokens
        self.smallest: int | None = None

    def of(self, model: Any) -> Batches:
        """Return batches for a model: single sequences for a classifier without a padding token, because it rejects others."""
        unaware = getattr(model.config.get_text_config(), "pad_token_id", None) is None
        return Batches(self.padding, 1) if unaware and "ForSequenceClassification" in type(model).__name__ else self

    def run(self, data: Sequences, compute: Callable[[Batch, list[int]], Result]) -> list[Result]:
        """Return `compute(batch, indices)` for all sequences in a fixed order: shortest first, equal lengths in their order.

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
                    f"one sequence of {size} tokens does not fit into the memory of the device: reduce `window`"
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
