"""Reads matrices from their byte ranges; matrices that are parts of the same stored weight share one read."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from scanner.checkpoint.formats import decoder_of
from scanner.checkpoint.model import MatrixRef, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.stored import Stored
from scanner.checkpoint.sources.files import ByteRange, FileVersion, open_files
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from scanner.rmt.decomposition import LowRank


def read_matrix(source: str, ref: MatrixRef, versions: Iterable[FileVersion] = ()) -> "torch.Tensor | LowRank":
    """Return a matrix as a CPU tensor of shape (rows, cols), in the dtype it is stored in or decoded to.

    The change that an adapter makes is returned as its two factors.

    Args:
        source: `Checkpoint.source`.
        ref: a matrix of that checkpoint.
        versions: `Checkpoint.versions`, with which the files are compared before and after.

    Raises:
        ChangedError: a file is not the version that was hashed.
        CheckpointError: a file is missing, unreadable or shorter than its header says, or cannot be decoded.
    """
    return read_matrices(source, [ref], versions)[0]


def read_matrices(
    source: str, refs: Sequence[MatrixRef], versions: Iterable[FileVersion] = ()
) -> "list[torch.Tensor | LowRank]":
    """Return several matrices of a checkpoint, reading and decoding each stored weight once.

    Products are returned as their two thin factors.

    Raises:
        CheckpointError: as `read_matrix`.
    """
    weights = [weight for ref in refs for weight in ref.weights]
    found = iter(_read_weights(source, weights, tuple(versions)))
    return [next(found) if ref.factors is None else _product(ref, next(found), next(found)) for ref in refs]


def _product(ref: MatrixRef, first: "torch.Tensor | LowRank", second: "torch.Tensor | LowRank") -> "LowRank":
    from scanner.rmt.decomposition import Product

    left, right = _dense(first), _dense(second)
    return Product(left=left.T if ref.role == "qk" else left, right=right)


def _read_weights(
    source: str, refs: Sequence[MatrixRef], versions: tuple[FileVersion, ...]
) -> "list[torch.Tensor | LowRank]":
    weights = {_weight_key(ref): ref for ref in refs}
    stored = _read(source, refs, versions)
    decoded = {
        key: decoder_of(ref.codec)(
            stored[ref.entry], {kind: stored[entry] for kind, entry in ref.companions}, dict(ref.settings)
        )
        for key, ref in weights.items()
    }
    bases = _read_bases(refs, versions)
    return [_cut(decoded[_weight_key(ref)], ref, bases.get(position)) for position, ref in enumerate(refs)]


def _read_bases(refs: Sequence[MatrixRef], versions: tuple[FileVersion, ...]) -> "dict[int, torch.Tensor | LowRank]":
    """Return what is subtracted from each matrix, by position; one read per source."""
    by_source: dict[str, list[tuple[int, MatrixRef]]] = {}
    for position, ref in enumerate(refs):
        if ref.minus is not None:
            by_source.setdefault(ref.minus[0], []).append((position, ref.minus[1]))
    found: dict[int, torch.Tensor | LowRank] = {}
    for source, wanted in by_source.items():
        matrices = read_matrices(source, [base for _, base in wanted], versions)
        found |= {position: matrix for (position, _), matrix in zip(wanted, matrices, strict=True)}
    return found


def _weight_key(ref: MatrixRef) -> tuple[object, ...]:
    return ref.codec, ref.entry, ref.companions, ref.settings


def _read(source: str, refs: Sequence[MatrixRef], versions: tuple[FileVersion, ...]) -> dict[TensorEntry, Stored]:
    entries = list(dict.fromkeys(entry for ref in refs for entry in (ref.entry, *(e for _, e in ref.companions))))
    files = open_files(source, versions)
    for entry in entries:
        # Checked before allocation, in case the file was truncated after its header was read.
        file_size = files.size(entry.file)
        if file_size < entry.start + entry.size:
            raise CheckpointError(
                f"{printable(entry.file)} has {file_size} bytes and tensor '{printable(entry.name)}' needs "
                f"{entry.start + entry.size}: the file was cut short, download it again"
            )
    contents = files.read_ranges([ByteRange(name=e.file, start=e.start, size=e.size) for e in entries])
    return {entry: Stored(entry=entry, content=content) for entry, content in zip(entries, contents, strict=True)}


def _cut(
    weight: "torch.Tensor | LowRank", ref: MatrixRef, base: "torch.Tensor | LowRank | None"
) -> "torch.Tensor | LowRank":
    """Return the matrix of a ref from its decoded weight; see `MatrixRef` for the order of the steps."""
    from scanner.rmt.decomposition import LowRank

    if isinstance(weight, LowRank):
        # Rows of a product are rows of its left factor, columns are columns of its right factor.
        axis = ref.head_slice.axis if ref.head_slice is not None else 0
        left = _cut_tensor(weight.left, ref) if axis == 0 else weight.left
        right = _cut_tensor(weight.right, ref) if axis == 1 else weight.right
        matrix: torch.Tensor | LowRank = LowRank(left=left, right=right)
    else:
        matrix = _cut_tensor(weight, ref)
    if base is not None:
        # In float64: the difference of two bfloat16 numbers is in general not a bfloat16 number.
        matrix = _dense(matrix) - _dense(base)
    if tuple(matrix.shape) != (ref.rows, ref.cols):
        raise CheckpointError(
            f"{printable(ref.tensor)}: a {matrix.shape[0]}x{matrix.shape[1]} matrix, but its header says "
            f"{ref.rows}x{ref.cols}"
        )
    return matrix


def _dense(matrix: "torch.Tensor | LowRank") -> "torch.Tensor":
    from scanner.rmt.decomposition import LowRank

    return matrix.left @ matrix.right if isinstance(matrix, LowRank) else matrix.double()


def _cut_tensor(weight: "torch.Tensor", ref: MatrixRef) -> "torch.Tensor":
    matrix = weight.T if ref.transposed else weight
    if ref.row_pattern is not None:
        pattern = ref.row_pattern
        matrix = matrix.reshape(-1, pattern.period, matrix.shape[1])
        matrix = matrix[:, pattern.offset : pattern.offset + pattern.width].reshape(-1, matrix.shape[2])
    if ref.rope_heads is not None:
        # Stored with the two rows of each rotary pair side by side; the model has the two halves of a head one after another.
        heads = matrix.reshape(ref.rope_heads, -1, 2, matrix.shape[1])
        matrix = heads.transpose(1, 2).reshape(matrix.shape)
    if ref.head_slice is not None:
        cut = ref.head_slice
        matrix = matrix[cut.start : cut.stop] if cut.axis == 0 else matrix[:, cut.start : cut.stop]
    return matrix
