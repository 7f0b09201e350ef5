"""Which embeddings and output heads of a checkpoint are the same weight, stored or named more than once."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from scanner.checkpoint.model import VOCABULARY_ROLES, MatrixRef, TensorEntry, TieCheck
from scanner.checkpoint.sources.files import BLOCK_BYTES, ByteRange, Files, FileVersion, open_files

_FIRST_BLOCK_BYTES = 64 * 2**10
# How many with the same beginning are compared to their ends; speech models have some dozens of embeddings of one shape.
_MOST_ALIKE = 64


@dataclass(frozen=True, kw_only=True)
class Ties:
    """Copies of weights.

    Attributes:
        copies: stored tensor that repeats a matrix -> name of that matrix.
        perhaps: name of a matrix that may repeat another -> name of that other; nothing was read.
    """

    copies: Mapping[str, str]
    perhaps: Mapping[str, str]


def tie_check(source: str, matrices: Iterable[MatrixRef], config: Mapping[str, object]) -> TieCheck:
    """Return what `find_ties` needs to know about a checkpoint."""
    return TieCheck(
        source=source,
        candidates=tuple(ref for ref in matrices if ref.role in VOCABULARY_ROLES),
        declared=config.get("tie_word_embeddings") is True,
    )


def resolve_ties(checks: Iterable[TieCheck], versions: Iterable[FileVersion] = ()) -> dict[str, dict[str, str]]:
    """Compare the bytes of embeddings and output heads and return which are copies.

    This reads weights, in blocks that grow: different weights differ at once, and reading may be a download.

    Args:
        checks: `Inventory.tie_checks`.
        versions: `Checkpoint.versions`, with which the files are compared.

    Returns:
        For the source of each check, stored tensor -> name of the matrix that it repeats; see `Inventory.without`.

    Raises:
        CheckpointError: a file cannot be read, or is not the version that was hashed.
    """
    versions = tuple(versions)
    return {check.source: dict(find_ties(check, open_files(check.source, versions)).copies) for check in checks}


def find_ties(check: TieCheck, files: Files | None = None) -> Ties:
    """Find the embeddings and output heads that repeat an earlier one; of an embedding and a head, the head is the copy.

    A head is a copy if the config declares it, or if both are the same bytes of the same file. Other matrices of equal
    shape are compared byte by byte in `files`; without `files` nothing is read, and they are listed in `perhaps`.

    Raises:
        CheckpointError: a file cannot be read.
    """
    copies: dict[str, str] = {}
    perhaps: dict[str, str] = {}
    alike: dict[tuple[object, ...], _Alike] = defaultdict(_Alike)
    for ref in sorted(check.candidates, key=lambda ref: ref.role == "lm_head"):
        earlier = alike[_without_place(ref)]
        original = earlier.by_place.get(_place(ref))
        if original is None and check.declared and ref.role == "lm_head":
            original = earlier.embedding
        if original is None and files is not None:
            original = earlier.with_the_bytes_of(ref, files)
        if original is not None:
            copies[ref.entry.name] = original.tensor
            continue
        if files is None and earlier.by_place:
            perhaps[ref.tensor] = next(iter(earlier.by_place.values())).tensor
        earlier.add(ref)
    return Ties(copies=copies, perhaps=perhaps)


@dataclass
class _Alike:
    """Matrices that differ in nothing but their place, and so may hold the same bytes."""

    by_place: dict[tuple[object, ...], MatrixRef] = field(default_factory=dict)
    embedding: MatrixRef | None = None
    _unread: list[MatrixRef] = field(default_factory=list)
    _by_beginning: dict[bytes, list[MatrixRef]] = field(default_factory=lambda: defaultdict(list))

    def add(self, ref: MatrixRef) -> None:
        self.by_place[_place(ref)] = ref
        self._unread.append(ref)
        if self.embedding is None and ref.role == "embedding":
            self.embedding = ref

    def with_the_bytes_of(self, ref: MatrixRef, files: Files) -> MatrixRef | None:
        if not self.by_place:
            return None
        for other in self._unread:
            self._by_beginning[_beginning(files, other)].append(other)
        self._unread.clear()
        similar = self._by_beginning.get(_beginning(files, ref), [])
        return next((other for other in similar[:_MOST_ALIKE] if _same_bytes(files, ref, other)), None)


def _without_place(ref: MatrixRef) -> tuple[object, ...]:
    """Return what two matrices must share for equal bytes to mean equal numbers."""
    stored = tuple(replace(entry, name="", file="", start=0) for entry in _entries(ref))
    return ref.rows, ref.cols, ref.dtype, ref.codec, ref.settings, ref.transposed, stored


def _place(ref: MatrixRef) -> tuple[object, ...]:
    return tuple((entry.file, entry.start, entry.size) for entry in _entries(ref))


def _entries(ref: MatrixRef) -> list[TensorEntry]:
    return [ref.entry, *(entry for _, entry in ref.companions)]


def _beginning(files: Files, ref: MatrixRef) -> bytes:
    digest = hashlib.sha256()
    entries = _entries(ref)
    ranges = [ByteRange(name=e.file, start=e.start, size=min(e.size, _FIRST_BLOCK_BYTES)) for e in entries]
    for content in files.read_ranges(ranges):
        digest.update(content.tobytes())
    return digest.digest()


def _same_bytes(files: Files, one: MatrixRef, other: MatrixRef) -> bool:
    """Tell whether two matrices with the same beginning hold the same bytes."""
    return all(_same_content(files, *pair) for pair in zip(_entries(one), _entries(other), strict=True))


def _same_content(files: Files, one: TensorEntry, other: TensorEntry) -> bool:
    done, count = _FIRST_BLOCK_BYTES, 2 * _FIRST_BLOCK_BYTES
    while done < one.size:
        count = min(count, one.size - done)
        mine, theirs = files.read_ranges(
            [ByteRange(name=entry.file, start=entry.start + done, size=count) for entry in (one, other)]
        )
        if mine.tobytes() != theirs.tobytes():
            return False
        done, count = done + count, min(2 * count, BLOCK_BYTES)
    return True
