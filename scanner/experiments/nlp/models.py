"""Load models and tokenizers from the references that scans use, without running code from checkpoints."""

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
from scanner.checkpoint.formats import get_format, is_change
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import SCHEME, FileVersion, check_unchanged
from scanner.engine.task import Context
from scanner.errors import ScannerError
from scanner.experiments.nlp.options import Precision

Head = Literal["own", "causal", "features", "classification"]
"""Head on top of the blocks: that of the checkpoint, the head of a language model, none, or a classifier."""
HEADS: tuple[Head, ...] = get_args(Head)

_EXTRA = "pip install 'rmtscan[experiments]'"
_HUB = "hf://"
#: Weights that may be missing, because no forward pass to the last block needs them.
_HARMLESS = ("pooler", "position_ids", "inv_freq")

#: Fewest ordinary tokens of a usable vocabulary: without its files, the tokenizer of T5 has one.
_FEWEST_WORDS = 2

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ModelPlace:
    """Where transformers finds a checkpoint; small, picklable, and valid on every machine that can read the files."""

    model: str
    """Name of the model, for messages."""
    path: str
    """A folder, or owner/name on the Hub."""
    revision: str | None = None
    """Commit on the Hub."""
    gguf_file: str | None = None
    """Name of the file in it, if it is a GGUF file."""
    versions: tuple[FileVersion, ...] = ()
    """Versions of its files, as they were hashed."""

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
    """Return where transformers finds an open checkpoint.

    Raises:
        ScannerError: the checkpoint cannot be run: it is an adapter, a difference of two, in a folder of a repository, or at a URL.
    """
    shown, source, form = printable(checkpoint.model), checkpoint.source, get_format(checkpoint.format)
    if checkpoint.base is not None or is_change(checkpoint):
        kind = "a difference of two checkpoints" if checkpoint.base is not None else "an adapter"
        raise ScannerError(f"{shown} is {kind}, which cannot be run by itself: give a complete model")
    files = sorted({entry.file for entry in checkpoint.tensors})
    if source.startswith(_HUB):
        repository, _, rest = source.removeprefix(_HUB).partition("@")
        commit, _, inside = rest.partition("/")
        loading = form.transformers_options([inside] if inside else files)
        if inside and (inside.endswith("/") or not loading):
            raise ScannerError(f"{shown} is in a folder of a repository: to run it, download it and give its folder")
        return ModelPlace(model=checkpoint.model, path=repository, revision=commit or None, **loading)
    if SCHEME.match(source):
        raise ScannerError(f"{shown} is at a URL: to run it, download it and give its folder")
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    return ModelPlace(
        model=checkpoint.model, path=str(folder), versions=checkpoint.versions, **form.transformers_options(files)
    )


def load_config(place: ModelPlace) -> Any:
    """Return the configuration of a model as transformers reads it.

    Raises:
        ScannerError: transformers does not know the class of the model, or is not installed.
    """
    transformers = _transformers()
    return _explained(place, lambda: transformers.AutoConfig.from_pretrained(place.path, **place.options))


def load_tokenizer(place: ModelPlace) -> Any:
    """Return the tokenizer of a model.

    Raises:
        ScannerError: there is none beside the weights, or it needs code from the checkpoint.
    """
    transformers = _transformers()
    tokenizer = _explained(
        place, lambda: transformers.AutoTokenizer.from_pretrained(place.path, **place.options), what="tokenizer"
    )
    # If the files are missing, transformers often makes a tokenizer that knows only special tokens.
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    if len({*tokenizer.get_vocab()} - special) < _FEWEST_WORDS:
        raise ScannerError(
            f"{printable(place.model)} has no tokenizer that transformers can read: its vocabulary is missing; put the files of "
            "the tokenizer (such as tokenizer.json) beside the weights"
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
    """Load a model onto a device, ready for forward passes without gradients.

    Quantized weights of a GGUF file are dequantized when they are loaded.

    Args:
        place: where the model is.
        head: head on top of the blocks. A head that the checkpoint lacks would be random, which is an error unless `labels` is
            given.
        device: `cpu` or `cuda`.
        dtype: precision of weights and activations.
        labels: number of classes of a new classifier (for training; with `classification` only).
        config: result of `load_config`; None: it is read.

    Raises:
        ChangedError: a file is not the one that was hashed.
        ScannerError: transformers does not know the class, a weight or a library is missing, or there is not enough memory.
    """
    check_unchanged(place.versions)
    transformers = _transformers()
    options = place.options | {"dtype": getattr(torch, dtype), "output_loading_info": True}
    if place.gguf_file is not None:
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    config = load_config(place) if config is None else copy.deepcopy(config)
    if labels is not None:
        config.num_labels = labels
    options["config"] = config  # otherwise it is read again, which is slow for a GGUF file
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
        model.set_experts_implementation("eager")  # the kernel for all experts at once does not support float64
    model.requires_grad_(False)
    model = _explained(place, lambda: model.to(device)).eval()
    check_unchanged(place.versions)
    return model


def unfilled_model(place: ModelPlace, config: Any, *, dtype: torch.dtype) -> Any:
    """Return a model on the CPU of the class that a configuration names, whose weights mean nothing until they are filled.

    Raises:
        ScannerError: transformers does not know the class, or there is not enough memory.
    """
    transformers = _transformers()
    model_class = _class_of(transformers, config, "own")

    def make() -> Any:
        from transformers.initialization import no_init_weights

        with no_init_weights():
            if hasattr(model_class, "from_config"):
                return model_class.from_config(config, dtype=dtype, trust_remote_code=False)
            return model_class._from_config(config, dtype=dtype)

    return _explained(place, make)


def resident_model(context: Context, place: ModelPlace, head: Head, dtype: Precision, config: Any = None) -> Any:
    """Return the model that a worker keeps, which is loaded at its first use; `config` as in `load_model`.

    Raises:
        ScannerError: as `load_model`.
    """

    def load() -> Any:
        with context.stage("read"):
            return load_model(place, head=head, device=context.device, dtype=dtype, config=config)

    return context.resident("model", (place, head, dtype), load)


#: Parameters of glibc's mallopt, and the largest mmap threshold that it accepts.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD = -1, -3, 32 << 20


def keep_freed_memory() -> None:
    """Let the allocator keep freed memory, and allocate large tensors in huge pages: each pass needs the same memory again.

    Without this, a tenth of the time of an evaluation on a CPU is spent on page faults of the logits
    (`benchmarks/bench_evaluation.py`). Has no effect without glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it once, at its first large tensor
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def is_causal(config: Any) -> bool:
    """Return whether a model predicts the next token; false for encoders and encoder-decoder models."""
    mapping = _transformers().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    names = getattr(config, "architectures", None) or []
    if names:
        return any(
            str(name).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names
        ) and (config.model_type in mapping and not config.is_encoder_decoder)
    masked = _transformers().models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in mapping and config.model_type not in masked


def has_classifier(config: Any) -> bool:
    """Return whether a checkpoint was saved with a sequence classifier."""
    return any("ForSequenceClassification" in str(name) for name in getattr(config, "architectures", None) or [])


def longest_input(config: Any, tokenizer: Any) -> int:
    """Return the largest number of input tokens according to the configuration and the tokenizer; a million if neither says."""
    text = config.get_text_config()
    known = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_sequence_length")]
    positions = [value for value in known if isinstance(value, int) and value > 0]
    if text.model_type in _AFTER_PADDING and getattr(text, "position_embedding_type", "absolute") == "absolute":
        positions = [value - 1 - (text.pad_token_id or 0) for value in positions]
    of_tokenizer = getattr(tokenizer, "model_max_length", None)
    if isinstance(of_tokenizer, int) and of_tokenizer > 0:
        positions.append(of_tokenizer)
    return max(2, min([*positions, 1_000_000]))


#: Models whose positions are numbered from the index of the padding token plus one, which leaves fewer for tokens.
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
        return "perplexity and KL divergence need a checkpoint with the head of a language model"
    if head == "classification":
        return "fine-tune the model first, or load it without a classifier"
    return "the checkpoint is incomplete, download it again"


def _explained(place: ModelPlace, load: Callable[[], Result], what: str = "model") -> Result:
    """Return the result of `load`; errors of transformers become a ScannerError of one line."""
    shown = printable(place.model)
    try:
        with without_chatter():
            return load()
    except torch.OutOfMemoryError as error:
        raise ScannerError(
            f"{shown} does not fit into the memory of the device: run fewer workers per device, or set `dtype` to bfloat16"
        ) from error
    except ImportError as error:
        raise ScannerError(f"{shown} needs a library that is not installed: {_first_line(error)}") from error
    except (ValueError, OSError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        text = _first_line(error)
        if "trust_remote_code" in str(error) or "does not recognize this architecture" in str(error):
            raise ScannerError(
                f"transformers does not know the class of {shown}, and code from a checkpoint is never run (trust_remote_code is "
                "off)"
            ) from error
        if what == "tokenizer":
            raise ScannerError(f"{shown} has no tokenizer that transformers can read: {text}") from error
        raise ScannerError(f"transformers cannot load {shown}: {text}") from error


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Suppress progress bars and advice of transformers while something is loaded or saved."""
    chatter: Any = _transformers().utils.logging

    before, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bar of dequantization cannot be disabled
            yield
    finally:
        chatter.set_verbosity(before)
        if bars:
            chatter.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ScannerError(f"experiments on models need transformers, which is not installed: {_EXTRA}") from error
    return transformers
