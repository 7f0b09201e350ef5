"""Writing a site to a folder: every model is written once, and again only if its results have changed.

    DIR/index.html compare.html matrix.html nightly.html    the pages; what they show is in their URLs
    DIR/index.json                                          one entry per model, at most 2 kB each
    DIR/models/<key>/index.html                             the page of a model, with its findings as text
    DIR/models/<key>/model.json                             aggregates by place, role and decile
    DIR/models/<key>/matrices.json                          the matrices, and where their vectors are
    DIR/models/<key>/vectors-<state>.bin                    singular values and p-values, fetched matrix by matrix
    DIR/models/<key>/heads.json                             of models with slices of heads: their table
    DIR/models/<key>/slices.json, slices-<state>.bin        the slices, and their vectors, like those of the matrices
    DIR/controls/<rows>x<cols>-<state>.bin                  random controls by shape
    DIR/nights/<night>.json, .html                          digests of nightly scans
    DIR/assets/                                             scripts and styles, those of third parties with their licenses
    DIR/rmtscan-site.json                                   what was written, and from what

Every file is replaced as a whole. Only files that an earlier run wrote are removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.fleet.digest import SECTIONS, as_html, as_json, digest, nights_of
from scanner.site import content
from scanner.site.answers import Answers, answers, batches
from scanner.site.assets import assets
from scanner.site.models import Model, models_of
from scanner.store import Store
from scanner.store.database import listing
from scanner.store.publish import without_local_paths
from scanner.store.queries import find_query
from scanner.store.tables import listed_tables
from scanner.templates import environment
from scanner.version import __version__

MANIFEST = "rmtscan-site.json"
PAGES = ("index.html", "compare.html", "matrix.html", "nightly.html")
_TEMPLATES = Path(__file__).resolve().parent / "templates"
#: Part of the state of every model: raised when the files of a model change their form.
_FORM = 2
_OWN = re.compile(
    r"(?:models/[a-z0-9-]{1,64}/(?:index\.html|model\.json|(?:matrices|heads|slices)\.json|(?:vectors|slices)-[0-9a-f]{12}\.bin)"
    r"|controls/\d+x\d+-[0-9a-f]{12}\.bin|nights/[0-9A-Za-z-]+\.(?:json|html)|assets/[A-Za-z0-9_.-]+"
    r"|(?:index|compare|matrix|nightly)\.html|index\.json|404\.html|\.nojekyll)"
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """Summary of a written site."""

    path: Path
    models: int
    written: int
    """Number of models that were written by this call; the others had not changed."""
    nights: int
    bytes: int
    """Size of all files."""


def state_of(store: Store) -> str:
    """Return a text that changes with the committed results of a store.

    Raises:
        StoreError: the store cannot be read.
    """
    versions = {table: repr(listing(store.files, table).version) for table in (*listed_tables(), "controls")}
    begun = [(scan.scan_id, scan.parts) for scan in store.unfinished()]
    return _digest(versions, begun)


def write_site(
    store: Store,
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    live: bool = False,
    keep: tuple[str, ...] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Site:
    """Write the site of a store, or bring an earlier one up to date.

    Args:
        store: the store to read.
        folder: the folder; created if it does not exist.
        force: write into a folder that has other content, which is kept.
        live: the site is served by `rmtscan serve`, and its pages ask for news.
        keep: names of other files that the folder may have.
        progress: called with the name of each model that is written.

    Raises:
        ScannerError: the store has no finished scan, the folder cannot be used, or a package is missing.
    """
    files = assets()
    target = _usable_folder(folder, store, force=force, keep=keep)
    before, made_before = _earlier(target)
    models = models_of(store)
    controls_version = repr(listing(store.files, "controls").version)
    unfinished: Counter[str] = Counter()
    for scan in store.unfinished():
        unfinished[scan.model or scan.scan_id] += scan.parts
    paths: dict[str, str] = {}
    made: dict[str, dict[str, Any]] = {}
    with _explained(target):
        place = _Place(target, paths)
        if not (target / MANIFEST).exists():
            _write_manifest(target, (), {})
        for name, data in files.items():
            place.write(f"assets/{name}", data)
        controls = _Controls(store, place, _digest(_FORM, controls_version))
        states = {
            model.key: _digest(
                (_FORM, __version__, live, model.name, model.scans, [(*pair[:3], pair.gone) for pair in model.pairs]),
                controls_version,
                unfinished.get(model.name),
            )
            for model in models
        }
        for model in models:
            before_it = made_before.get(model.key)
            if (
                before_it is not None
                and before_it["state"] == states[model.key]
                and all((target / path).is_file() for path in before_it["paths"])
            ):
                made[model.key] = before_it
                paths.update(dict.fromkeys(before_it["paths"], ""))
        changed = [model for model in models if model.key not in made]
        checked = store.query("control_check").to_pylist() if changed else []
        number = 0
        for batch in batches(changed):
            found = answers(store, batch)
            for model in batch:
                number += 1
                progress(f"{printable(model.name)} ({number} of {len(changed)})")
                about = content.aggregates(model, found[model.name], checked, unfinished[model.name])
                made[model.key] = {
                    "state": states[model.key],
                    **_write_model(model, found[model.name], about, place, controls, states[model.key], live=live),
                }
            # A run that is ended is continued by the next one.
            _write_manifest(target, {*before, *paths}, made)
        entries = [made[model.key]["entry"] for model in models]
        nights = _write_nights(store, place)
        waiting = [{"name": printable(name), "parts": parts} for name, parts in sorted(unfinished.items())]
        state = _digest([made[model.key]["state"] for model in models], nights, waiting)
        index = {
            "state": state,
            "version": __version__,
            "store": _name(store),
            "models": entries,
            "nights": nights,
            "unfinished": waiting,
        }
        if nights:
            index["sections"] = [
                {"query": one.query, "title": find_query(one.query).title, "columns": one.columns, "none": one.none}
                for one in SECTIONS
            ]
        place.write("index.json", _json(index))
        for page in PAGES:
            place.write(page, _page(page, live=live, models=entries, nights=nights, unfinished=waiting, root="."))
        place.write(".nojekyll", b"")
        _remove(target, {*before} - {*paths})
        _write_manifest(target, paths, made)
    size = sum((target / path).stat().st_size for path in paths)
    return Site(path=target, models=len(models), written=len(changed), nights=len(nights), bytes=size)


@dataclass
class _Place:
    """The folder of a site; remembers which files belong to it."""

    folder: Path
    paths: dict[str, str]

    def write(self, path: str, data: bytes) -> None:
        """Write a file, unless it is there with the same content."""
        to = self.folder / path
        to.parent.mkdir(parents=True, exist_ok=True)
        if not (to.is_file() and not to.is_symlink() and to.stat().st_size == len(data) and to.read_bytes() == data):
            _replace(to, data)
        self.paths[path] = ""


@dataclass
class _Controls:
    """Files of random controls, each written when the first model needs it."""

    store: Store
    place: _Place
    state: str
    _known: dict[str, str | None] | None = None

    def file(self, rows: int, cols: int) -> str | None:
        """Return the path of the controls of a shape; None without controls."""
        if self._known is None:
            self._known = {}
        shape = f"{rows}x{cols}"
        path = f"controls/{shape}-{self.state[:12]}.bin"
        if shape not in self._known:
            data = content.control(self.store, rows, cols)
            self._known[shape] = None if data is None else path
            if data is not None:
                self.place.write(path, data)
        return self._known[shape]


def _write_model(
    model: Model,
    found: Answers,
    about: Mapping[str, Any],
    place: _Place,
    controls: _Controls,
    state: str,
    *,
    live: bool,
) -> dict[str, Any]:
    """Write the files of one model; returns its entry of the index and their paths."""
    matrices = found.matrices
    stored = content.vectors(found.vectors, matrices)
    folder = f"models/{model.key}"
    file = f"vectors-{state[:12]}.bin"
    shapes = dict.fromkeys((row["rows"], row["cols"]) for row in (*matrices, *found.slices))
    of_shape = {f"{rows}x{cols}": path for rows, cols in shapes if (path := controls.file(rows, cols)) is not None}
    headline = next((one["headline"] for one in about["findings"] if not one["warning"]), "")
    entry = content.entry(model, found, headline)
    files = {
        "model.json": _json(about),
        "matrices.json": _json(content.listed(matrices, stored, file, of_shape)),
        file: stored.content,
        "index.html": _page("model.html", live=live, model=about, root="../..", key=model.key),
    }
    if found.slices:
        of_slices, slices_file = content.vectors(found.vectors, found.slices), f"slices-{state[:12]}.bin"
        files |= {
            "heads.json": _json(content.heads(found.slices)),
            "slices.json": _json(content.listed(found.slices, of_slices, slices_file, of_shape, slices=True)),
            slices_file: of_slices.content,
        }
    for name, data in files.items():
        place.write(f"{folder}/{name}", data)
    return {"entry": entry, "paths": [*(f"{folder}/{name}" for name in files), *of_shape.values()]}


def _write_nights(store: Store, place: _Place) -> list[dict[str, Any]]:
    """Write the digests of the nights of a store; returns what the list of nights shows, the newest first."""
    nights = nights_of(store)
    for night in nights:
        found = digest(store, night["night_id"])
        place.write(f"nights/{night['night_id']}.json", as_json(found).encode())
        place.write(f"nights/{night['night_id']}.html", as_html(found, back="../nightly.html").encode())
    columns = ("night_id", "state", "started_at", "listed", "new", "scanned", "failed", "skipped", "waiting", "seconds")
    return [{name: night[name] for name in columns} for night in nights]


def _page(name: str, *, live: bool, root: str, **values: Any) -> bytes:
    text = (
        _templates()
        .get_template(f"{name}.j2")
        .render(page=name.removesuffix(".html"), live=live, root=root, version=__version__, **values)
    )
    return text.encode("utf-8", "replace")


@cache
def _templates() -> jinja2.Environment:
    return environment(_TEMPLATES, {})


def _name(store: Store) -> str:
    """Return the store as commands on the pages name it: a URL, or the name of its folder."""
    return store.url if "://" in store.url else without_local_paths(store.url)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _usable_folder(folder: str | os.PathLike[str], store: Store, *, force: bool, keep: tuple[str, ...]) -> Path:
    text = os.fspath(folder)
    if not text.strip() or "\0" in text or "://" in text:
        raise ScannerError(f"`output` {text!r} is not a local folder: write the site to one, and copy it from there")
    target = Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100 (resolve() would show where a link leads)
    if store.local:
        inside, root = target.resolve(), Path(store.url).resolve()
        if inside == root or root in inside.parents or inside in root.parents:
            raise ScannerError(
                f"`output` {text!r} and the store {store.url!r} contain one another: choose another folder"
            )
    if target.exists() and not target.is_dir():
        raise ScannerError(f"`output` {text!r} is a file: name a folder")
    with _explained(target):
        others = sorted(path.name for path in target.iterdir()) if target.exists() else []
        others = [name for name in others if name not in {".git", ".gitattributes", *keep}]
        if others and MANIFEST not in others and not force:
            raise ScannerError(
                f"`output` {text!r} contains {others[0]!r} and is not an earlier site: choose another folder, or use `force` to "
                "keep its content and write beside it"
            )
        target.mkdir(parents=True, exist_ok=True)
        links = [name for name in ("models", "controls", "nights", "assets") if (target / name).is_symlink()]
        if links:
            raise ScannerError(f"{str(target / links[0])!r} is a symbolic link, which leads out of the site: remove it")
    return target


def _earlier(target: Path) -> tuple[set[str], Mapping[str, dict[str, Any]]]:
    """Return the files that an earlier run wrote, and what it says about the models."""
    try:
        found = json.loads((target / MANIFEST).read_text("utf-8"))
        files = {path for path in found["files"] if isinstance(path, str) and _OWN.fullmatch(path)}
        models = {
            str(key): one
            for key, one in found["models"].items()
            if isinstance(one["state"], str)
            and isinstance(one["entry"], dict)
            and all(_OWN.fullmatch(path) for path in one["paths"])
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set(), {}
    return files, models


def _write_manifest(target: Path, paths: Collection[str], made: Mapping[str, dict[str, Any]]) -> None:
    manifest = {"written_by": f"rmtscan {__version__}", "files": sorted(paths), "models": made}
    _replace(target / MANIFEST, _json(manifest))


def _remove(target: Path, paths: set[str]) -> None:
    for path in sorted(paths):
        (target / path).unlink(missing_ok=True)
        try:
            (target / path).parent.rmdir()
        except OSError:  # it has other files
            continue


def _replace(path: Path, data: bytes) -> None:
    # A random name in a new folder of our own: nobody can have planted a link under it.
    temporary = Path(tempfile.mkdtemp(prefix=".rmtscan-", dir=path.parent))
    try:
        (temporary / "new").write_bytes(data)
        (temporary / "new").replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScannerError(f"the site cannot be written to {str(target)!r}: {error.strerror or error}") from error
