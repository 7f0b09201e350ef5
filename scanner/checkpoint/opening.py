"""Opens checkpoints: finds, names, checks and identifies what a reference means."""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable

from scanner.checkpoint.differences import PREFIX, difference, split_reference
from scanner.checkpoint.formats import Format, get_format
from scanner.checkpoint.formats.weights import find_weights
from scanner.checkpoint.metadata import architecture, base_model
from scanner.checkpoint.model import MEMORY, Checkpoint, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.references import find_place
from scanner.checkpoint.sources import hashes
from scanner.checkpoint.sources.files import FileVersion, LocalFiles, open_files
from scanner.checkpoint.sources.json_object import MAX_CONFIG_BYTES, read_json_object
from scanner.errors import CheckpointError
from scanner.extensions import load_extensions

#: Local files of at most this many bytes in total are hashed at once: this takes less than Ray's start.
HASHED_AT_ONCE = 64 << 20


def open_checkpoint(
    reference: str, *, download: bool = False, identify: bool = True, hash_at_most: float = math.inf
) -> Checkpoint:
    """Open a checkpoint by its reference.

    A reference is a local folder or file, `org/name[@revision]` or `hf://...` on the Hub, any fsspec URL, or
    `delta:BASE..TUNED`, the difference of two of these.

    Headers are read and checked; no weights stay in memory. Local files are read once, in blocks, to hash them, unless their
    hash is known from an earlier run or from their names in a Hugging Face cache. On the Hub the commit is the identity, and in
    other stores the checksums that the store reports.

    Args:
        reference: what to open.
        download: download whole files from the Hub into its cache instead of reading byte ranges.
        identify: if False, local files are not hashed, and identity and revision are empty.
        hash_at_most: if more bytes than this would have to be hashed, identity and revision stay empty, and `identified` hashes
            later.

    Raises:
        GatedError, MissingError, RateLimitedError: as the Hub responds.
        CheckpointError: nothing is there, the format is unknown, or the checkpoint is damaged or incomplete.
    """
    load_extensions()
    if reference.startswith(MEMORY):
        raise CheckpointError(
            f"{printable(reference)} was analyzed in memory and cannot be opened again: save the model, and name its folder"
        )
    if reference.startswith(PREFIX):
        base, tuned = (
            open_checkpoint(part, download=download, identify=identify, hash_at_most=hash_at_most)
            for part in split_reference(reference)
        )
        return difference(base, tuned)
    place = find_place(reference)
    files = open_files(place.source)
    if download:
        files.keep_whole(branch=place.branch)
    weights = find_weights(files)
    form = get_format(weights.format)
    own_config = [form.config_file] if files.has(form.config_file) else []
    determining = [*weights.files, *([weights.index] if weights.index else []), *own_config]
    config = dict(weights.config)
    for name in own_config:
        config |= read_json_object(files, name, max_bytes=MAX_CONFIG_BYTES)
    form.check(config, weights.tensors)
    versions = files.versions(sorted({*determining}))
    identity = provisional = ""
    if files.commit is not None or (identify and files.unhashed(determining) <= hash_at_most):
        identity = files.identity(determining)
        hashes.flush()
    if identify and isinstance(files, LocalFiles):
        provisional = _provisional(files.source, versions, weights.tensors)
    files.opened()
    return Checkpoint(
        model=place.model,
        revision=files.commit or identity[:12],
        source=files.source,
        format=form.name,
        architecture=architecture(config),
        base_model=base_model(place.model, config, files),
        parameters=sum(entries_by_dtype(weights.tensors, form, floating=True).values()),
        dtype=most_common_dtype(weights.tensors, form),
        identity=identity,
        config=config,
        tensors=weights.tensors,
        beside=weights.beside,
        left_out=weights.left_out,
        versions=versions,
        provisional=provisional,
    )


def identified(checkpoint: Checkpoint, *, check: Callable[[], None] = lambda: None) -> Checkpoint:
    """Return a checkpoint with its identity: local files that are not hashed yet are read once, in blocks.

    Args:
        checkpoint: an open checkpoint.
        check: called between blocks; it may raise, which ends the hashing.

    Raises:
        ChangedError: a file is not the version that was opened.
        CheckpointError: a file cannot be read, or both sides of a difference have the same content.
    """
    if checkpoint.identity or not checkpoint.provisional:
        return checkpoint
    if checkpoint.base is not None and checkpoint.tuned is not None:
        return difference(identified(checkpoint.base, check=check), identified(checkpoint.tuned, check=check))
    files = open_files(checkpoint.source, checkpoint.versions)
    identity = files.identity([version.name for version in checkpoint.versions], check=check)
    return dataclasses.replace(checkpoint, identity=identity, revision=identity[:12])


def _provisional(source: str, versions: Iterable[FileVersion], tensors: Iterable[TensorEntry]) -> str:
    """Hash what is known of local files without reading their weights: place, names, sizes, times, inodes and headers.

    What was computed under this identity counts for the next run, too, if the files are the same versions. So it contains all
    that tells one version from another, apart from the number of the device, which may change when a machine starts.
    """
    digest = hashlib.sha256(f"provisional\0{source}".encode("utf-8", "surrogatepass"))
    for version in versions:
        _, inode, changed = version.inode
        facts = (version.name, version.size, version.modified, inode, changed)
        digest.update("\0".join(["", *map(str, facts)]).encode("utf-8", "surrogatepass"))
    for entry in tensors:
        place = (entry.dtype, *entry.shape, entry.file, entry.start, entry.size, entry.column_major)
        digest.update("\0".join([entry.name, *map(str, place)]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def most_common_dtype(tensors: Iterable[TensorEntry], form: Format) -> str:
    """Return the dtype that most floating-point entries have; of integers only if there are no others."""
    counts = entries_by_dtype(tensors, form, floating=True) or entries_by_dtype(tensors, form, floating=False)
    return max(sorted(counts), key=lambda dtype: counts[dtype])


def entries_by_dtype(tensors: Iterable[TensorEntry], form: Format, *, floating: bool) -> Counter[str]:
    """Return how many entries are stored in each dtype, of floating-point numbers (or codes of a format) or of others."""
    counts: Counter[str] = Counter()
    for entry in tensors:
        if (entry.dtype.startswith(("F", "BF")) or entry.dtype in form.codecs) == floating:
            counts[entry.dtype] += math.prod(entry.shape)
    return counts
