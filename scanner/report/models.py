"""Resolution of references to models of a store, without access to the network or the checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scanner.checkpoint.differences import PREFIX, split_reference
from scanner.checkpoint.metadata import model_name
from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures.registry import nearest
from scanner.report.statements import rows_of
from scanner.store import Store


def choose_models(store: Store, references: Sequence[str]) -> list[str]:
    """Return the distinct models of references in their order; without references, all models of the store, differences last.

    A reference is the name of a scanned model, the place from which it was scanned (a folder, a file, a URL),
    `org/name@revision`, or `delta:BASE..TUNED` with two of these. A place refers to the checkpoint there, never to a difference.

    Raises:
        ScannerError: the store is empty, a model is not scanned (the message lists the scanned ones), or a scan is not finished.
    """
    known = rows_of(store, "models")
    models = sorted({row["model"] for row in known})
    if not references:
        if models:
            return sorted(models, key=lambda model: model.startswith(PREFIX))
        unfinished = store.unfinished()
        if unfinished:
            raise ScannerError(_not_finished(store, unfinished[0].model or unfinished[0].scan_id, unfinished[0].parts))
        raise ScannerError(f"{store.url} holds no scan: run 'rmtscan scan REF --store {store.url}'")
    return list(dict.fromkeys(_choose(store, reference, known, models) for reference in references))


def _choose(store: Store, reference: str, known: Sequence[dict[str, str | None]], models: Sequence[str]) -> str:
    if reference in models:
        return reference
    if reference.startswith(PREFIX):
        sides = [_choose(store, side, known, models) for side in split_reference(reference)]
        name = f"{PREFIX}{'..'.join(sides)}"
        if name in models:
            return name
    places = [row for row in known if row["model"] and not row["model"].startswith(PREFIX)]
    path = _local(reference)
    names = {reference.removeprefix("hf://").rstrip("/")}
    if path is not None:
        names = {model_name(path)}
        sources = [row["model"] for row in places if row["source"] == str(path)]
        if sources and sources[0]:
            return sources[0]
    sources = [row["model"] for row in places if row["source"] and row["source"].rstrip("/") == reference.rstrip("/")]
    found = [*sources, *(model for model in models if model in names)]
    if not found:
        name, at, revision = reference.removeprefix("hf://").partition("@")
        newest = next((row for row in known if row["model"] == name), None)
        if at and newest is not None:
            if revision and str(newest["revision"]).startswith(revision):
                found = [name]
            else:
                raise ScannerError(
                    f"the newest scan of {printable(name)!r} is of revision {str(newest['revision'])[:12]!r}, not "
                    f"{printable(revision)!r}: reports and exports cover the newest revision"
                )
    if found and found[0]:
        return found[0]
    for scan in store.unfinished():
        if scan.model is not None and scan.model in {reference, *names}:
            raise ScannerError(_not_finished(store, reference, scan.parts))
    shown = [printable(model) for model in models]
    there = nearest(printable(reference), shown) if shown else "the store holds no scan"
    raise ScannerError(f"{printable(reference)!r} is not scanned in {store.url}: {there}")


def _local(reference: str) -> Path | None:
    """Return the absolute path as a scan stores it, or None if the reference is not a path on this machine."""
    if not reference or "\0" in reference or "://" in reference:
        return None
    try:
        path = Path(reference).expanduser()
        if path.is_dir():
            return path.resolve()
        return path.parent.resolve() / path.name if path.exists() else None
    except (OSError, RuntimeError):
        return None


def _not_finished(store: Store, reference: str, parts: int) -> str:
    return (
        f"the scan of {printable(reference)!r} is not finished ({parts} matrices so far): "
        f"run 'rmtscan scan REF --store {store.url}' with the same reference to resume it"
    )
