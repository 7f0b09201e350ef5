"""Opens checkpoints: finds, names, checks and identifies what a reference means."""

import math
from collections import Counter
from collections.abc import Iterable

from scanner.checkpoint.differences import PREFIX, difference, split_reference
from scanner.checkpoint.formats import Format, get_format
from scanner.checkpoint.formats.weights import find_weights
from scanner.checkpoint.metadata import architecture, base_model
from scanner.checkpoint.model import Checkpoint, TensorEntry
from scanner.checkpoint.references import find_place
from scanner.checkpoint.sources.files import open_files
from scanner.checkpoint.sources.json_object import MAX_CONFIG_BYTES, read_json_object
from scanner.extensions import load_extensions


def open_checkpoint(reference: str, *, download: bool = False, identify: bool = True) -> Checkpoint:
    """Open a checkpoint by its reference.

    A reference is a local folder or file, `org/name[@revision]` or `hf://...` on the Hub, any fsspec URL, or
    `delta:BASE..TUNED`, the difference of two of these.

    Headers are read and checked; no weights stay in memory. Local files are read once, in blocks, to hash them. On the
    Hub the commit is the identity, and in other stores the checksums that the store reports.

    Args:
        reference: what to open.
        download: download whole files from the Hub into its cache instead of reading byte ranges.
        identify: if False, local files are not hashed, and identity and revision are empty.

    Raises:
        GatedError, MissingError, RateLimitedError: as the Hub responds.
        CheckpointError: nothing is there, the format is unknown, or the checkpoint is damaged or incomplete.
    """
    load_extensions()
    if reference.startswith(PREFIX):
        base, tuned = (
            open_checkpoint(part, download=download, identify=identify) for part in split_reference(reference)
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
    identity = files.identity(determining) if identify or files.commit is not None else ""
    return Checkpoint(
        model=place.model,
        revision=files.commit or identity[:12],
        source=files.source,
        format=form.name,
        architecture=architecture(config),
        base_model=base_model(place.model, config, files),
        parameters=sum(_entries_by_dtype(weights.tensors, form, floating=True).values()),
        dtype=_most_common_dtype(weights.tensors, form),
        identity=identity,
        config=config,
        tensors=weights.tensors,
        beside=weights.beside,
        left_out=weights.left_out,
        versions=files.versions(sorted({*determining})),
    )


def _most_common_dtype(tensors: Iterable[TensorEntry], form: Format) -> str:
    counts = _entries_by_dtype(tensors, form, floating=True) or _entries_by_dtype(tensors, form, floating=False)
    return max(sorted(counts), key=lambda dtype: counts[dtype])


def _entries_by_dtype(tensors: Iterable[TensorEntry], form: Format, *, floating: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    for entry in tensors:
        if (entry.dtype.startswith(("F", "BF")) or entry.dtype in form.codecs) == floating:
            counts[entry.dtype] += math.prod(entry.shape)
    return counts
