"""The interface of a file format, and the registry of the formats that checkpoints are read in."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from scanner.checkpoint.formats.commands import several_models
from scanner.checkpoint.formats.parts import check_ranks, numbered_parts, without_variants
from scanner.checkpoint.model import MAX_NAME_BYTES, MAX_TENSORS, LogicalWeight, Skipped, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.decoding import DECODERS, Decoder
from scanner.checkpoint.quantization.weights import logical_weights
from scanner.checkpoint.sources.files import Files
from scanner.checkpoint.structure.layouts import Layout
from scanner.errors import CheckpointError

_TRAINING_STATE = re.compile(
    r"(?:(?:training_args|optim(?:_\w*)?|optimizer\w*|exp_avg(?:_sq)?|(?:extra|trainer)_state\w*|scheduler\w*|scaler|rng_state\w*|random_states\w*)"
    r"|\w*(?:optim_states|optimizer_states?))\.(?:bin|pt|pth|ckpt|safetensors)"
)

INDEX_SUFFIX = ".index.json"
"""Ending of the name of an index: the file that maps tensors to the files (shards) that hold them."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The files that hold the weights of a checkpoint, or else the index that names them."""

    names: tuple[str, ...] = ()
    index: str | None = None


@dataclass(frozen=True, kw_only=True)
class Headers:
    """What the headers of the weights files contain.

    Attributes:
        tensors: every stored tensor, file by file, in the order of their bytes.
        config: what the files say about the model, under the keys of a transformers config.
        left_out: what the files hold beside the model, such as optimizers, each with the reason.
    """

    tensors: tuple[TensorEntry, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[Skipped, ...] = ()


def is_training_state(name: str) -> bool:
    """Tell whether a file holds the state of an optimizer or a trainer, by its name: it has the suffix of a weights file."""
    return _TRAINING_STATE.fullmatch(name) is not None


class Format(ABC):
    """A file format of checkpoints. A subclass has a `name`, `suffixes` and `read_file`; all else has a default.

    An instance is registered with `register_format`. It has no state: the driver and every worker have their own.

    Attributes:
        name: value of `Checkpoint.format`; stored with results.
        title: name for messages.
        suffixes: endings of the names of weights files, with the dot.
        single_file: name under which the format's own tools save a model that fits into one file. A model in several
            files then has an index called `single_file` + `.index.json`.
        config_file: name of the JSON file beside the weights that describes the model.
        holds_changes: whether the tensors are changes to the weights of another model, as those of an adapter are.
        codecs: codec of each stored dtype that is not a plain number; the tensors of such a dtype are weights.
        decoders: decoder of each codec that the format adds.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    single_file: ClassVar[str | None] = None
    config_file: ClassVar[str] = "config.json"
    holds_changes: ClassVar[bool] = False
    codecs: ClassVar[Mapping[str, str]] = {}
    decoders: ClassVar[Mapping[str, Decoder]] = {}

    # ---- finding files

    def recognizes(self, name: str) -> bool:
        """Tell whether a file is a weights file of this format, by its name."""
        return bool(self.suffixes) and name.endswith(self.suffixes) and not is_training_state(name)

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the names of all files of the model that the weights file `name` is a part of, in order.

        Only needed for conventions of the format: `...-00001-of-00003...` means three files in every format.
        """
        return (name,)

    def find(self, files: Files) -> WeightFiles | None:
        """Return the weights in a folder if they have the names that the format's own tools give.

        The folder belongs to the first registered format that finds something, in the order of registration.
        """
        if self.single_file is None:
            return None
        if files.has(self.single_file):
            return WeightFiles(names=(self.single_file,))
        index = self.single_file + INDEX_SUFFIX
        return WeightFiles(index=index) if files.has(index) else None

    def find_other(self, files: Files) -> WeightFiles | None:
        """Return the weights in a folder whatever their names; called if `find` of no format finds any.

        Raises:
            CheckpointError: the folder holds several models.
        """
        names = tuple(name for name in files.names() if self.recognizes(name))
        if not names:
            return None
        check_ranks(names, names)
        main = without_variants(names)
        parts = numbered_parts(main[0], names.__contains__)
        if set(main) - set(parts):
            raise CheckpointError(several_models(files, main))
        return WeightFiles(names=parts)

    def claims(self, files: Files, names: Sequence[str]) -> bool:
        """Tell whether weights files that another format found are of this one, which uses the other as a container."""
        return False

    # ---- reading headers

    def read_headers(self, files: Files, names: Sequence[str]) -> Headers:
        """Read the headers of all weights files.

        Raises:
            CheckpointError: a file is damaged or contradicts another, or there are too many tensors.
        """
        tensors: list[TensorEntry] = []
        for name in names:
            tensors += self.read_file(files, name)
            check_tensor_count(len(tensors), name)
        return Headers(tensors=tuple(tensors))

    @abstractmethod
    def read_file(self, files: Files, name: str) -> Sequence[TensorEntry]:
        """Read the header of one weights file and return its tensors, in the order of their bytes.

        The file is untrusted: check every number before it sizes an allocation or a loop.

        Raises:
            CheckpointError: the file is damaged or is not of this format.
        """

    def check(self, config: Mapping[str, Any], tensors: Sequence[TensorEntry]) -> None:
        """Refuse a checkpoint whose weights mean something that is not supported, by its config and its headers.

        Raises:
            CheckpointError: the checkpoint would be misread.
        """
        return

    # ---- from tensors to weights and matrices

    def weights(
        self, tensors: Sequence[TensorEntry], config: Mapping[str, Any]
    ) -> tuple[tuple[LogicalWeight, ...], tuple[Skipped, ...]]:
        """Return the weights that the tensors make, and the tensors that are not the main tensor of a weight."""
        return logical_weights(tensors, config, self.codecs)

    def layout(self, config: Mapping[str, Any], architecture: str | None, weights: Iterable[LogicalWeight]) -> Layout:
        """Return what the names of weights mean and how matrices are stored."""
        return Layout(config, architecture, weights)

    # ---- other programs

    def transformers_options(self, files: Sequence[str]) -> dict[str, Any]:
        """Return the keyword arguments that `from_pretrained` of transformers needs to load these weights files."""
        return {}


def check_tensor_count(count: int, name: str) -> None:
    """Raise CheckpointError if the files up to `name` hold more tensors than any model has."""
    if count > MAX_TENSORS:
        raise CheckpointError(
            f"the checkpoint has more than {MAX_TENSORS} tensors up to {printable(name)}, more than any model"
        )


def check_name(tensor: str, file: str) -> None:
    """Raise CheckpointError if the name of a tensor is longer than any model's: it is repeated in every row about it."""
    if len(tensor) > MAX_NAME_BYTES or len(tensor.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise CheckpointError(
            f"{printable(file)} has a tensor whose name is longer than {MAX_NAME_BYTES} bytes "
            f"('{printable(tensor)}'): no model needs such names"
        )


_FORMATS: dict[str, Format] = {}


def register_format(new: Format) -> None:
    """Make a format known to `open_checkpoint` and to everything that reads checkpoints.

    Call it when the module of the format is imported, and name that module in `RMTSCAN_EXTENSIONS`, so that workers know
    the format too (see `scanner.extensions`). Earlier formats win where several recognize a file.

    Args:
        new: the format. Registering an object of the same class again has no effect.

    Raises:
        ValueError: another format has the same name or defines one of its codecs.
    """
    known = _FORMATS.get(new.name)
    if known is not None:
        if type(known).__qualname__ != type(new).__qualname__ or type(known).__module__ != type(new).__module__:
            raise ValueError(f"a format called {new.name!r} is registered already: choose another name")
        return
    taken = set(DECODERS).union(*(other.decoders for other in _FORMATS.values())) & set(new.decoders)
    if taken:
        raise ValueError(f"codec {min(taken)!r} is defined already: choose another name")
    _FORMATS[new.name] = new


def formats() -> tuple[Format, ...]:
    """Return the registered formats, in the order of registration."""
    return tuple(_FORMATS.values())


def get_format(name: str) -> Format:
    """Return the format that a checkpoint names in `Checkpoint.format`.

    Raises:
        CheckpointError: no such format is registered.
    """
    try:
        return _FORMATS[name]
    except KeyError:
        raise CheckpointError(
            f"the format {printable(name)!r} is unknown: load the extension that defines it (RMTSCAN_EXTENSIONS)"
        ) from None


def format_of(name: str) -> Format | None:
    """Return the format of a weights file by its name, or None."""
    return next((known for known in formats() if known.recognizes(name)), None)


def decoder_of(codec: str) -> Decoder:
    """Return the decoder of a codec, that of a quantization scheme or of a format.

    Raises:
        CheckpointError: no registered format defines the codec.
    """
    for decoders in (DECODERS, *(known.decoders for known in formats())):
        if codec in decoders:
            return decoders[codec]
    raise CheckpointError(
        f"the codec {printable(codec)!r} is unknown: load the extension that defines it (RMTSCAN_EXTENSIONS)"
    )
