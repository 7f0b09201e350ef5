"""Splits attention projections into one matrix per head: rows of queries, keys and values, columns of attention outputs."""

from dataclasses import replace

from scanner.checkpoint.model import HeadSlice, MatrixRef
from scanner.checkpoint.structure.packings import MAX_HEADS
from scanner.checkpoint.structure.sizes import Sizes

HEAD_ROLES = frozenset({"query", "key", "value", "attn_out"})

NOT_SPLIT = "not split by heads: scan without --heads"


def head_refs(ref: MatrixRef, sizes: Sizes) -> tuple[MatrixRef, ...]:
    """Return one matrix per head; keys and values have fewer heads than queries if queries share them.

    The result is empty if the config does not say how many heads there are, or does not match the matrix; `misfit` says
    which.

    Args:
        ref: a query, key, value or attention output.
        sizes: what the config says about the block.
    """
    if ref.head is not None:
        return (ref,) if is_split(ref) else ()
    heads = head_count(ref, sizes)
    if heads is None:
        return ()
    axis = 1 if ref.role == "attn_out" else 0
    width = (ref.cols if axis else ref.rows) // heads
    rows, cols = (ref.rows, width) if axis else (width, ref.cols)
    return tuple(
        replace(
            ref,
            head=head,
            heads=None,
            rows=rows,
            cols=cols,
            head_slice=HeadSlice(axis=axis, start=head * width, stop=(head + 1) * width),
        )
        for head in range(heads)
    )


def head_count(ref: MatrixRef, sizes: Sizes) -> int | None:
    """Return in how many heads of one width a whole matrix can be split; None as `head_refs` says."""
    heads = _count(ref.role, sizes) if is_split(ref) and ref.head is None else None
    if heads is None or heads > MAX_HEADS:
        return None
    extent = ref.cols if ref.role == "attn_out" else ref.rows
    return heads if any(heads * width == extent for width in _widths(ref, sizes)) else None


def is_split(ref: MatrixRef) -> bool:
    """Tell whether a matrix consists of heads.

    The low-rank factors that produce the latents of multi-head latent attention do not: all heads share them.
    """
    return ref.role in HEAD_ROLES and ref.expert is None and ref.module not in ("mla_a", "indexer")


def misfit(ref: MatrixRef, sizes: Sizes) -> str:
    """Return why a matrix that consists of heads cannot be split."""
    heads = _count(ref.role, sizes)
    if heads is None:
        return f"{ref.role}: config.json does not say how many heads there are"
    extent, what = (ref.cols, "columns") if ref.role == "attn_out" else (ref.rows, "rows")
    widths = " or ".join(str(width) for width in _widths(ref, sizes)) or "unknown width"
    return f"{ref.role}: {extent} {what} are not the {heads} heads of {widths} that config.json describes"


def _count(role: str, sizes: Sizes) -> int | None:
    if role in ("key", "value") and not sizes.is_latent:
        return sizes.key_value_heads or sizes.heads
    return sizes.heads


def _widths(ref: MatrixRef, sizes: Sizes) -> tuple[int, ...]:
    """Return how many rows (or columns, of attention outputs) one head may have."""
    if sizes.nope_dim is not None and sizes.rope_dim is not None and sizes.value_dim is not None:
        latent = {"query": sizes.nope_dim + sizes.rope_dim, "key": sizes.nope_dim}
        return (latent.get(ref.role, sizes.value_dim),)
    if ref.role in ("value", "attn_out") and sizes.value_dim is not None:
        return (sizes.value_dim,)
    return sizes.head_dims
