"""References: what a user names becomes a local path, a commit of a model on the Hub, or the URL of another store."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from scanner.checkpoint.formats.weights import weight_suffixes
from scanner.checkpoint.metadata import model_name
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import SCHEME
from scanner.checkpoint.spellings import hub_spelling, present_name
from scanner.errors import CheckpointError, GatedError, RateLimitedError

# org/name, org/name@revision, and either followed by a path; with a path but no revision only if it names a weights file.
_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@.+|(?P<path>/.+))?", re.ASCII | re.DOTALL)

# Pages of a mirror, by the name of the host: hf-mirror.com.
_MIRROR = re.compile(r"(?:^|[.-])(?:hf|huggingface)(?:[.-]|$)")
_MIRRORED = re.compile(
    r"/([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?:tree|blob|resolve|raw)/.*)?/?\Z", re.ASCII | re.DOTALL
)

# Chained file systems of fsspec: simplecache::s3://bucket/folder, zip://folder::s3://bucket/x.zip.
_CHAINED = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(?:://[^\[\]]*)?::[a-zA-Z][a-zA-Z0-9+.-]*:", re.ASCII | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint is: `source` is the argument of `open_files`, `branch` the branch or tag that the user named."""

    source: str
    model: str
    branch: str | None = None


def find_place(reference: str) -> Place:
    """Find what a reference means. An existing local path has priority; a branch on the Hub becomes its newest commit.

    Raises:
        GatedError, MissingError, RateLimitedError: as the Hub responds.
        CheckpointError: the reference is invalid, or nothing is there.
    """
    shown = printable(reference)
    if not reference or "\0" in reference:
        raise CheckpointError(f"'{shown}' does not name a checkpoint: give a folder, a file, org/name or a URL")
    try:
        reference.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"the path {shown} is not valid UTF-8: rename it") from error
    if _CHAINED.match(reference) and _local_path(reference) is None:
        raise CheckpointError(
            f"{shown} is a chain of file systems, which is not read, because each link may read or write anywhere: name the "
            "store itself (s3://bucket/folder), or copy or unpack the checkpoint to a local folder"
        )
    path = None if SCHEME.match(reference) else _local_path(reference)
    if path is not None:
        return _local(path)
    reference = hub_spelling(reference, weight_suffixes())
    scheme = SCHEME.match(reference)
    if scheme is not None:
        return _SCHEMES.get(scheme[1].lower(), _elsewhere)(reference)
    name, at, revision = reference.partition("@")
    present = present_name(name)
    if present is not None:
        return _legacy(reference, f"{present}{at}{revision}")
    on_the_hub = _ON_THE_HUB.fullmatch(reference)
    if on_the_hub is None or (on_the_hub["path"] and not reference.endswith(weight_suffixes())):
        raise CheckpointError(f"{shown} does not exist{_hint(reference)}")
    try:
        return _on_the_hub(f"hf://{reference}")
    except (GatedError, RateLimitedError):
        raise
    except CheckpointError as error:
        raise type(error)(f"{shown} does not exist on this machine{_close(reference)}, and {error}") from error


def _local_path(reference: str) -> Path | None:
    shown = printable(reference)
    try:
        path = Path(reference).expanduser()
        if path.is_dir():
            return path.resolve(strict=True)
        if path.is_file():
            # Resolve only the folder: the file may be a link into a cache, where names are hashes.
            return path.parent.resolve(strict=True) / path.name
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: an unknown ~user, a loop of symbolic links
        reason = error.strerror if isinstance(error, OSError) else printable(str(error))
        raise CheckpointError(f"{shown} cannot be opened: {reason}") from error
    if exists:
        raise CheckpointError(f"{shown} is neither a folder nor a regular file")
    return None


def _local(path: Path) -> Place:
    snapshot = _snapshot(path)
    return Place(source=str(snapshot), model=model_name(snapshot))


def _snapshot(path: Path) -> Path:
    """Return the snapshot that a folder of a Hugging Face cache stands for: that of main, or the only one; else the path."""
    folder = path.parent if path.name == "snapshots" else path
    if not folder.name.startswith("models--") or not (folder / "snapshots").is_dir():
        return path
    try:
        commits = sorted(one.name for one in (folder / "snapshots").iterdir() if one.is_dir())
        main = (
            (folder / "refs" / "main").read_text("utf-8", "replace").strip()
            if (folder / "refs" / "main").is_file()
            else ""
        )
    except OSError as error:
        raise CheckpointError(f"{printable(str(path))} cannot be opened: {error.strerror}") from error
    if main in commits or len(commits) == 1:
        return folder / "snapshots" / (main if main in commits else commits[0])
    found = ", ".join(printable(str(folder / "snapshots" / commit)) for commit in commits[:5])
    raise CheckpointError(
        f"{printable(str(path))} is a folder of the Hugging Face cache with {len(commits)} snapshots of a model, none of which is "
        f"its main branch: " + (f"name one of {found}" if commits else "download the model again")
    )


def _legacy(reference: str, present: str) -> Place:
    """Find a model by its name from before owners were: the Hub redirects it, but caches may have either."""
    try:
        return _on_the_hub(f"hf://{reference}")
    except (GatedError, RateLimitedError):
        raise
    except CheckpointError as error:
        try:
            return _on_the_hub(f"hf://{present}")
        except CheckpointError:
            raise type(error)(
                f"{printable(reference)} does not exist on this machine{_close(reference)}, and {error}"
            ) from error


def _local_url(reference: str) -> Place:
    parts = urlsplit(reference)
    path = _local_path(url2pathname(parts.path)) if parts.netloc in ("", "localhost") and parts.path else None
    if path is None:
        raise CheckpointError(f"{printable(reference)} does not exist on this machine")
    return _local(path)


def _on_the_hub(reference: str) -> Place:
    # Imported here, so that local references do not wait for the client of the Hub.
    from scanner.checkpoint.sources.hub_files import hub_files
    from scanner.checkpoint.sources.hub_lookup import find_commit, parse_hub_reference

    found = parse_hub_reference(reference)
    commit = find_commit(found)
    source = f"hf://{commit.repository}@{commit.commit}"
    # An address may end with a query; the path in any other reference may contain every character.
    written = urlsplit(reference).path if reference.lower().startswith("http") else reference
    if found.path:
        source += f"/{found.path}" if _names_a_file(written) else f"/{found.path}/"
    if commit.sizes is not None:
        hub_files(source).listed(commit.sizes)
    model = "/".join(filter(None, [commit.repository, _without_suffix(found.path)]))
    return Place(source=source, model=printable(model), branch=found.revision)


def _web_page(reference: str) -> Place:
    from huggingface_hub import constants

    parts = urlsplit(reference)
    host = parts.hostname or ""
    if host in constants.HF_URL_HOSTS:
        return _on_the_hub(reference)
    model = _MIRRORED.match(parts.path)
    if model is not None and _MIRROR.search(host):
        raise CheckpointError(
            f"{printable(reference)} is a page of a mirror of the Hub: set HF_ENDPOINT=https://{printable(host)} and write "
            f"{model[1]}"
        )
    return _elsewhere(reference)


def _elsewhere(reference: str) -> Place:
    parts = urlsplit(reference)
    if parts.username is not None or parts.password is not None or parts.query:
        raise CheckpointError(
            f"the {parts.scheme}:// URL of a checkpoint must not contain a password, signature or other query, because it is "
            "written into results: set the credentials as the environment variables of that store"
        )
    source = reference if _names_a_file(reference) else f"{reference.rstrip('/')}/"
    # As a path from the root of the store, so that generic names get the name of their folder in front.
    names = [unquote(part) for part in f"{parts.netloc}/{parts.path}".split("/") if part]
    return Place(source=source, model=model_name(Path("/", *names)))


_SCHEMES: dict[str, Callable[[str], Place]] = {
    "file": _local_url,
    "local": _local_url,
    "hf": _on_the_hub,
    "http": _web_page,
    "https": _web_page,
}


def _names_a_file(reference: str) -> bool:
    return reference.lower().endswith(weight_suffixes())


def _without_suffix(path: str) -> str:
    suffix = next((suffix for suffix in weight_suffixes() if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(suffix)]


def _hint(reference: str) -> str:
    close = _close(reference)
    if close:
        return f": {close.strip(' ()')}"
    if (on_the_hub := _ON_THE_HUB.fullmatch(reference)) and on_the_hub["path"]:
        return f": for a folder of a model on the Hub write hf://{printable(reference)}"
    return ": give a checkpoint's folder or a file with weights, org/name for a model on the Hub, or a URL"


def _close(reference: str) -> str:
    path = Path(reference).expanduser()
    try:
        siblings = [sibling.name for sibling in path.parent.iterdir()]
    except OSError:
        siblings = []
    found = difflib.get_close_matches(path.name, siblings, n=1)
    return f" (did you mean {printable(str(path.parent / found[0]))}?)" if found else ""
