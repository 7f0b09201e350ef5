"""Create a measure and its tokens from options (a metric and a text), with the parameters that identify it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.experiments.nlp.accuracy import Choice, Classifier, Probe, labels_of
from scanner.experiments.nlp.evaluation import Divergence, Measure, Perplexity, Windows
from scanner.experiments.nlp.labels import Examples, Integers, encoded
from scanner.experiments.nlp.models import (
    Head,
    ModelPlace,
    has_classifier,
    is_causal,
    load_config,
    load_tokenizer,
    longest_input,
)
from scanner.experiments.nlp.options import DEFAULT_WINDOW, HARNESS, METRICS, SHORTEST, MeasureOptions
from scanner.experiments.nlp.texts import CHARACTERS_PER_TOKEN, Texts, read_texts
from scanner.experiments.nlp.tokens import Ids, Sequences, affixes, encode, padding_id, running_ids


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measure that can be sent to workers, the head that a model needs for it, and the parameters that identify it."""

    measure: Measure
    head: Head
    padding: int
    dataset: str
    parameters: dict[str, object]
    config: Any
    """Configuration of the model."""
    tokenizer: Any
    """Tokenizer of the model."""

    @property
    def described(self) -> str:
        """One line for the user: the metric, the data, the windows, and the number of tokens or examples."""
        measure, cut = self.measure, self.parameters
        on = f"{measure.metric} on {printable(self.dataset)}"
        if measure.metric.startswith(HARNESS):
            return f"{measure.metric}: {cut['score']} of {measure.units:,} documents"
        if measure.metric == "accuracy":
            found = f"{on}: {measure.units:,} test examples, at most {cut['window']} tokens each ({cut['kind']})"
            answers = cut.get("answers")
            if not isinstance(answers, dict):
                return found
            return f"{found}; answers: " + ", ".join(f'{printable(k)}="{printable(v)}"' for k, v in answers.items())
        return f"{on}: {measure.tokens:,} tokens predicted in {measure.units:,} windows of {cut['window']}, stride {cut['stride']}"


def measurement(place: ModelPlace, wanted: MeasureOptions) -> Measurement:
    """Read and tokenize the text that the options name.

    Raises:
        ScannerError: the metric cannot be measured on the model, or the text is not suitable.
    """
    if wanted.metric.startswith(HARNESS):
        return _harness(place, wanted)
    if wanted.metric not in METRICS:
        raise ScannerError(f"unknown `metric` {wanted.metric!r}: choose from {', '.join(METRICS)}, lm-eval:TASK")
    if not wanted.text:
        raise ScannerError(f"`text` is missing: {wanted.metric} needs a text")
    labeled = wanted.metric == "accuracy"
    if wanted.second is not None and not labeled:
        raise ScannerError(f"{wanted.metric} reads one continuous text: omit `second` (only accuracy reads pairs)")
    texts = read_texts(wanted.source(), labeled=labeled, tokens=None if labeled else wanted.tokens)
    config, tokenizer = load_config(place), load_tokenizer(place)
    longest = longest_input(config, tokenizer)
    parameters: dict[str, object] = {"metric": wanted.metric, "text": texts.digest}
    if wanted.metric == "accuracy":
        measure, head, more = _accuracy(place, config, tokenizer, texts, wanted, longest)
    else:
        measure, head, more = _language(place, config, tokenizer, texts, wanted, longest)
    return Measurement(
        measure=measure,
        head=head,
        padding=padding_id(tokenizer, config),
        dataset=texts.name,
        parameters=parameters | more,
        config=config,
        tokenizer=tokenizer,
    )


def _harness(place: ModelPlace, wanted: MeasureOptions) -> Measurement:
    from scanner.experiments.nlp.harness import harness_task

    config, tokenizer = load_config(place), load_tokenizer(place)
    if not is_causal(config):
        raise ScannerError(f"{printable(place.model)} is not a causal language model: {wanted.metric} needs one")
    task = wanted.metric.removeprefix(HARNESS)
    measure, more = harness_task(place, tokenizer, task, wanted.text, wanted.examples)
    return Measurement(
        measure=measure,
        head="causal",
        padding=padding_id(tokenizer, config),
        dataset=task,
        parameters={"metric": wanted.metric} | more,
        config=config,
        tokenizer=tokenizer,
    )


def _language(
    place: ModelPlace, config: Any, tokenizer: Any, texts: Texts, wanted: MeasureOptions, longest: int
) -> tuple[Measure, Head, dict[str, object]]:
    if not is_causal(config):
        otherwise = "" if _is_pair(config) else "; `metric` accuracy does not"
        raise ScannerError(
            f"{printable(place.model)} is not a causal language model: {wanted.metric} needs one{otherwise}"
        )
    length = wanted.window if wanted.window is not None else min(DEFAULT_WINDOW, longest)
    if length > longest:
        raise ScannerError(f"`window` is {length}, but {printable(place.model)} takes at most {longest} tokens")
    ids = running_ids(tokenizer, texts, tokens=wanted.tokens)
    if len(ids) == wanted.tokens and len(ids) < length:  # truncated to `tokens`, so the text may be long enough
        raise ScannerError(
            f"`tokens` {wanted.tokens} does not fill a window of {length}: increase `tokens` or reduce `window`"
        )
    windows = Windows.cut(ids, length=length, stride=wanted.stride)
    measure: Measure = Perplexity(windows=windows) if wanted.metric == "perplexity" else Divergence(windows=windows)
    cut = {"tokens": wanted.tokens, "window": windows.length, "stride": windows.stride}
    return measure, "causal", cut | {"ids": windows.digest}


def _accuracy(
    place: ModelPlace, config: Any, tokenizer: Any, texts: Texts, wanted: MeasureOptions, longest: int
) -> tuple[Measure, Head, dict[str, object]]:
    length = min(wanted.window or DEFAULT_WINDOW, longest)
    classes = texts.classes  # of all rows: the first rows of a file sorted by label have one class
    texts = _spread(texts, wanted.examples)
    parameters: dict[str, object] = {"examples": wanted.examples, "window": length}
    if has_classifier(config):
        names = [str(config.id2label[index]) for index in range(config.num_labels)]
        examples = _examples(tokenizer, config, texts, labels_of(texts, names), length)
        parameters |= {"kind": "classifier", "ids": examples.digest}
        return Classifier(examples=examples), "classification", parameters
    labels = labels_of(texts)
    if _is_pair(config):
        raise ScannerError(
            f"{printable(place.model)} is an encoder-decoder model: accuracy can be measured on encoders, decoders and models "
            "with a classifier"
        )
    if not is_causal(config):
        probe = Probe(examples=_examples(tokenizer, config, texts, labels, length))
        if not probe.units:
            raise ScannerError(
                f"{printable(texts.name)}: every class has a single text, but half of each is needed for testing"
            )
        return probe, "own", parameters | {"kind": "probe", "ids": probe.examples.digest}
    answers = wanted.answers or classes
    if len(answers) != len(classes):
        raise ScannerError(
            f"`answers` has {len(answers)} words for {len(classes)} classes: {', '.join(map(printable, classes))}"
        )
    if len({*answers}) != len(answers):
        raise ScannerError(f"`answers` {','.join(map(printable, answers))}: every class needs a different answer")
    unknown = sorted({*re.findall(r"\{(\w+)\}", wanted.prompt)} - {"text", "second"})
    if unknown:
        raise ScannerError(f"`prompt` contains {{{unknown[0]}}}: only {{text}} and {{second}} are replaced")
    if "{text}" not in wanted.prompt or (texts.seconds and "{second}" not in wanted.prompt):
        raise ScannerError("`prompt` must contain {text}, and {second} for pairs")
    tokens = tuple(_answer(tokenizer, wanted.prompt, answer) for answer in answers)
    longest_answer = max(map(len, tokens))
    if length <= longest_answer:
        raise ScannerError(f"`window` {length} is too small for a prompt and an answer of {longest_answer} tokens")
    seconds = texts.seconds or ("",) * len(texts.items)
    pairs = zip(texts.items, seconds, strict=True)
    prefix, _ = affixes(tokenizer)
    ids = tuple(_prompt(tokenizer, prefix, wanted.prompt, *pair, length - longest_answer) for pair in pairs)
    paired = dict(zip(classes, answers, strict=True))
    more: dict[str, object] = {"kind": "choice", "prompt": wanted.prompt, "answers": paired}
    more["ids"] = Sequences(ids=(*ids, *tokens)).digest
    return Choice(ids=ids, answers=tokens, labels=labels), "causal", parameters | more


def _examples(tokenizer: Any, config: Any, texts: Texts, labels: Integers, length: int) -> Examples:
    if length < SHORTEST:
        raise ScannerError(f"accuracy needs sequences of at least {SHORTEST} tokens, got `window` {length}")
    return encoded(texts, labels, range(len(texts.items)), tokenizer, length, padding_id(tokenizer, config))


def _is_pair(config: Any) -> bool:
    alone = any(str(name).endswith("EncoderModel") for name in getattr(config, "architectures", None) or [])
    return bool(getattr(config, "is_encoder_decoder", False)) and not alone


def _answer(tokenizer: Any, prompt: str, answer: str) -> Ids:
    """Return the tokens of an answer after the end of the prompt: some tokenizers begin every text with a space."""
    end = prompt.rpartition("}")[2] or "a"
    before, ids = encode(tokenizer, end, special=False), encode(tokenizer, f"{end} {answer}", special=False)
    if ids[: len(before)] != before:  # its first letters share a token with the end of the prompt
        before, ids = [], encode(tokenizer, f" {answer}", special=False)
    return np.array(ids[len(before) :], dtype=np.int32)


def _prompt(tokenizer: Any, prefix: Sequence[int], prompt: str, text: str, second: str, room: int) -> Ids:
    """Return the tokens of a prompt filled with its text or pair, after `prefix` (a BOS token, for example).

    If it is too long, the text is truncated at the end, of a pair the longer text; the words of the prompt are kept.

    Raises:
        ScannerError: the prompt is too long even without a text.
    """
    parts = {"text": text[: CHARACTERS_PER_TOKEN * room], "second": second[: CHARACTERS_PER_TOKEN * room]}
    while True:
        # In one pass, so that {text} inside a text is not replaced.
        filled = re.sub(r"\{(text|second)\}", lambda place: parts[place[1]], prompt)
        ids = [*prefix, *encode(tokenizer, filled, special=False)]
        if len(ids) <= room:
            return np.array(ids, dtype=np.int32)
        longer = max(parts, key=lambda name: len(parts[name]))
        if not parts[longer]:
            raise ScannerError(f"`window` leaves {room} tokens for the prompt, which has {len(ids)} without a text")
        count = len(parts[longer])
        parts[longer] = parts[longer][: min(count - 1, count * room // len(ids))]


def _spread(texts: Texts, most: int | None) -> Texts:
    """Keep at most `most` examples, the same number of each class: the first ones in the order of the file."""
    if most is None or most >= len(texts.items):
        return texts
    if most < 2 * len(texts.classes):
        raise ScannerError(
            f"`examples` {most} is too small for {len(texts.classes)} classes: give at least {2 * len(texts.classes)}"
        )
    taken: dict[str, int] = {}
    share = most // len(texts.classes)
    kept = []
    for index, label in enumerate(texts.labels):
        if taken.get(label, 0) < share:
            taken[label] = taken.get(label, 0) + 1
            kept.append(index)
    return replace(
        texts,
        items=tuple(texts.items[i] for i in kept),
        seconds=tuple(texts.seconds[i] for i in kept) if texts.seconds else (),
        labels=tuple(texts.labels[i] for i in kept),
        _digest=[],
    )
