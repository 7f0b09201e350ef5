"""Models and tokenizers from the same references that are scanned; code from checkpoints is never run."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from scanner.checkpoint import Checkpoint
from scanner.checkpoint.formats import get_format
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import SCHEME
from scanner.engine.task import Context
from scanner.errors import ScannerError
from scanner.experiments.nlp.options import Precision

Head = Literal["own", "causal", "features", "classification"]
"""What stands on top of the blocks: what the checkpoint was saved with, a language model's head, nothing, a classifier."""
HEADS: tuple[Head, ...] = get_args(Head)

_EXTRA = "pip install 'rmtscan[experiments]'"
_HUB = "hf://"
#: Of a checkpoint that was saved without its pooler, say: what no forward pass to the last block needs.
_HARMLESS = ("pooler", "position_ids", "inv_freq")

#: Tokens beside the special ones that a tokenizer has: T5's has one without its files.
_FEWEST_WORDS = 2

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ModelPlace:
    """Where transformers finds a checkpoint: small and picklable, the same on every machine that sees the files."""

    model: str
    """The model's name, for messages."""
    path: str
    """A folder, or owner/name on the Hub."""
    revision: str | None = None
    """The commit on the Hub."""
    gguf_file: str | None = None
    """The file in it, where that is a GGUF file."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of every `from_pretrained`."""
        found: dict[str, Any] = {"trust_remote_code": False}
        if self.revision is not None:
            found["revision"] = self.revision
        else:
            found["local_files_only"] = True
        if self.gguf_file is not None:
            found["gguf_file"] = self.gguf_file
        return found


def model_place(checkpoint: Checkpoint) -> ModelPlace:
    """Where transformers finds an open checkpoint.

    Raises:
        ScannerError: it is one that cannot be run: an adapter, a difference of two, or behind a URL.
    """
    shown, source, form = printable(checkpoint.model), checkpoint.source, get_format(checkpoint.format)
    if checkpoint.base is not None or form.holds_changes:
        kind = "a difference of two checkpoints" if checkpoint.base is not None else "an adapter"
        raise ScannerError(f"{shown} is {kind}, which cannot be run by itself: name a whole model")
    files = sorted({entry.file for entry in checkpoint.tensors})
    if source.startswith(_HUB):
        repository, _, rest = source.removeprefix(_HUB).partition("@")
        commit, _, inside = rest.partition("/")
        loading = form.transformers_options([inside] if inside else files)
        if inside and (inside.endswith("/") or not loading):
            raise ScannerError(f"{shown} lies inside a repository: download it and name its folder to run it")
        return ModelPlace(model=checkpoint.model, path=repository, revision=commit or None, **loading)
    if SCHEME.match(source):
        raise ScannerError(f"{shown} lies behind a URL: download it and name its folder to run it")
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    return ModelPlace(model=checkpoint.model, path=str(folder), **form.transformers_options(files))


def load_config(place: ModelPlace) -> Any:
    """The model's configuration, as transformers understands it.

    Raises:
        ScannerError: transformers does not know the model's class, or is not installed.
    """
    transformers = _transformers()
    return _explained(place, lambda: transformers.AutoConfig.from_pretrained(place.path, **place.options))


def load_tokenizer(place: ModelPlace) -> Any:
    """The model's tokenizer.

    Raises:
        ScannerError: there is none beside the weights, or it needs code of its own.
    """
    transformers = _transformers()
    tokenizer = _explained(
        place, lambda: transformers.AutoTokenizer.from_pretrained(place.path, **place.options), what="tokenizer"
    )
    # Where its files are missing, transformers makes one of most kinds that knows special tokens alone: no word is known to it.
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    if len({*tokenizer.get_vocab()} - special) < _FEWEST_WORDS:
        raise ScannerError(
            f"{printable(place.model)} has no tokenizer that transformers can read: its vocabulary is missing; put the tokenizer's "
            "files (tokenizer.json, say) beside the weights"
        )
    return tokenizer


def load_model(
    place: ModelPlace,
    *,
    head: Head = "own",
    device: str = "cpu",
    dtype: Precision = "float32",
    labels: int | None = None,
    config: Any = None,
) -> Any:
    """The model, resident on a device, ready for forward passes without gradients.

    Weights that a GGUF file holds quantised are dequantised as they are loaded.

    Args:
        place: where it is.
        head: what stands on top of its blocks. A head that the checkpoint does not hold is an error, unless `labels` is given:
            a new one would be random.
        device: `cpu` or `cuda`.
        dtype: precision of weights and activations.
        labels: number of classes of a new classifier (for training; with `classification` only).
        config: what `load_config` gave; None: it is read.

    Raises:
        ScannerError: transformers does not know its class, a weight is missing or a library is, or memory does not suffice.
    """
    transformers = _transformers()
    options = place.options | {"dtype": getattr(torch, dtype), "output_loading_info": True}
    if place.gguf_file is not None:
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    config = load_config(place) if config is None else copy.deepcopy(config)
    if labels is not None:
        config.num_labels = labels
    options["config"] = config  # else it is read again, which takes long of a GGUF file
    model_class = _class_of(transformers, config, head)
    model, info = _explained(place, lambda: model_class.from_pretrained(place.path, **options))
    new_head = labels is not None
    missing = [name for name in sorted(info["missing_keys"]) if not any(part in name for part in _HARMLESS)]
    if missing and not new_head:
        raise ScannerError(
            f"{printable(place.model)} has no {printable(missing[0])} ({len(missing)} weights of {type(model).__name__} are "
            f"missing): {_advice(head)}"
        )
    if dtype == "float64" and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the kernel that takes all experts at once knows no float64
    model.requires_grad_(False)
    return _explained(place, lambda: model.to(device)).eval()


def resident_model(context: Context, place: ModelPlace, head: Head, dtype: Precision, config: Any = None) -> Any:
    """Return the model that a worker keeps, loaded when it is first asked for; `config` as in `load_model`.

    Raises:
        ScannerError: as `load_model`.
    """
    return context.resident(
        "model",
        (place, head, dtype),
        lambda: load_model(place, head=head, device=context.device, dtype=dtype, config=config),
    )


#: Parameters of glibc's mallopt, and the largest threshold it takes for blocks that go back to the system when they are freed.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD = -1, -3, 32 << 20


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed, and take large tensors in huge pages: each pass needs the same memory again.

    On a CPU a tenth of an evaluation went into the page faults of its logits (`benchmarks/bench_evaluation.py`). Where there is no
    glibc, nothing is changed.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks once, at its first large tensor
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def is_causal(config: Any) -> bool:
    """Whether a model predicts the next token: not an encoder, not a pair of encoder and decoder."""
    mapping = _transformers().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    names = getattr(config, "architectures", None) or []
    if names:
        return any(
            str(name).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names
        ) and (config.model_type in mapping and not config.is_encoder_decoder)
    masked = _transformers().models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in mapping and config.model_type not in masked


def has_classifier(config: Any) -> bool:
    """Whether a checkpoint was saved with a classifier of sequences."""
    return any("ForSequenceClassification" in str(name) for name in getattr(config, "architectures", None) or [])


def longest_input(config: Any, tokenizer: Any) -> int:
    """Tokens that a model takes at a time, as its configuration and its tokenizer say; a million if neither does."""
    text = config.get_text_config()
    known = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_sequence_length")]
    positions = [value for value in known if isinstance(value, int) and value > 0]
    if text.model_type in _AFTER_PADDING and getattr(text, "position_embedding_type", "absolute") == "absolute":
        positions = [value - 1 - (text.pad_token_id or 0) for value in positions]
    of_tokenizer = getattr(tokenizer, "model_max_length", None)
    if isinstance(of_tokenizer, int) and of_tokenizer > 0:
        positions.append(of_tokenizer)
    return max(2, min([*positions, 1_000_000]))


#: Models that number positions from the one after the padding token's number on: so many fewer are left for tokens.
_AFTER_PADDING = frozenset(
    """roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod camembert mpnet data2vec-text ibert luke longformer esm lilt
    layoutlmv3 markuplm""".split()
)


def _class_of(transformers: Any, config: Any, head: Head) -> Any:
    if head == "causal":
        return transformers.AutoModelForCausalLM
    if head == "classification":
        return transformers.AutoModelForSequenceClassification
    if head == "own":
        for name in getattr(config, "architectures", None) or []:
            found = getattr(transformers, str(name), None)
            if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
                return found
    return transformers.AutoModel


def _advice(head: Head) -> str:
    if head == "causal":
        return "perplexity and KL divergence need a checkpoint with its language model's head"
    if head == "classification":
        return "fine-tune it first, or leave the head out"
    return "the checkpoint is not whole, download it again"


def _explained(place: ModelPlace, load: Callable[[], Result], what: str = "model") -> Result:
    """What `load` returns; what transformers raises becomes one line."""
    shown = printable(place.model)
    try:
        with _quiet():
            return load()
    except torch.OutOfMemoryError as error:
        raise ScannerError(
            f"{shown} does not fit into the device's memory: fewer models a device, or bfloat16"
        ) from error
    except ImportError as error:
        raise ScannerError(f"{shown} needs a library that is not installed: {_first_line(error)}") from error
    except (ValueError, OSError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        text = _first_line(error)
        if "trust_remote_code" in str(error) or "does not recognize this architecture" in str(error):
            raise ScannerError(
                f"transformers does not know the class of {shown}, and code that comes with a checkpoint is never run "
                "(no trust_remote_code)"
            ) from error
        if what == "tokenizer":
            raise ScannerError(f"{shown} has no tokenizer that transformers can read: {text}") from error
        raise ScannerError(f"transformers cannot load {shown}: {text}") from error


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice on stderr while something is loaded."""
    chatter: Any = _transformers().utils.logging

    before, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of dequantisation does not ask
            yield
    finally:
        chatter.set_verbosity(before)
        if bars:
            chatter.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ScannerError(f"experiments run models with transformers, which is not installed: {_EXTRA}") from error
    return transformers
