"""The local cache of huggingface_hub: which files of a commit it has, and downloads into it."""

import glob
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_cached_repo_tree, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError, OfflineModeIsEnabled

from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.hub_errors import disk_full, hub_errors
from scanner.errors import CheckpointError

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)", re.DOTALL)


def cached_file(repository: str, commit: str, path: str) -> Path | None:
    """Return the path of a file of a commit in the cache, or None."""
    found = try_to_load_from_cache(repository, path, revision=commit, cache_dir=constants.HF_HUB_CACHE)
    return Path(found) if isinstance(found, str) else None


def cached_commits(repository: str, start: str) -> list[str]:
    """Return the commit in the cache that begins with at least seven digits, `start`; none if there are several."""
    if not re.fullmatch(r"[0-9a-f]{7,63}", start):
        return []
    name = "--".join(["models", *repository.split("/")])
    found = [
        path.name for path in (Path(constants.HF_HUB_CACHE) / name / "snapshots").glob(f"{start}*") if path.is_dir()
    ]
    return [one for one in found if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", one)] if len(found) == 1 else []


def cached_listing(repository: str, commit: str) -> dict[str, int | None] | None:
    """Return the paths of all files of a commit with their sizes, if a download has recorded them in the cache."""
    try:
        files = get_cached_repo_tree(repository, revision=commit, cache_dir=constants.HF_HUB_CACHE)
    except CachedRepoTreeNotFoundError:
        return None
    return {file.path: file.size for file in files}


def cached_snapshot(repository: str, commit: str) -> dict[str, int | None]:
    """Return the paths of the files of a commit that are in the cache, for a commit whose listing is not cached.

    Raises:
        CheckpointError: there are none, or shards are missing.
    """
    name = "--".join(["models", *repository.split("/")])
    snapshot = Path(constants.HF_HUB_CACHE) / name / "snapshots" / commit
    found = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    if not found:
        with hub_errors(repository):
            raise OfflineModeIsEnabled
    shards = [shard.groups() for path in found if (shard := _SHARD.fullmatch(path))]
    for (stem, total, suffix), count in Counter((stem, total, suffix) for stem, _, total, suffix in shards).items():
        if count != int(total):
            raise CheckpointError(
                f"the local cache has {count} of the {int(total)} files {printable(stem)}-*{suffix} of {printable(repository)}, "
                "and HF_HUB_OFFLINE forbids downloading the others: unset it"
            )
    return dict.fromkeys(found)


def download(repository: str, commit: str, paths: Sequence[str], *, size: int, branch: str) -> None:
    """Download whole files of a commit into the cache.

    Args:
        repository: the model on the Hub.
        commit: the commit they belong to.
        paths: the files, relative to the top of the repository.
        size: total size in bytes.
        branch: the branch or tag that led to the commit, or the commit.

    Raises:
        GatedError, MissingError, RateLimitedError: as the Hub responds.
        CheckpointError: they do not fit onto the disk, or were not downloaded.
    """
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if size > free:
        detail = f"{size / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free"
        raise CheckpointError(disk_full(printable(repository), detail))
    with hub_errors(repository, revision=branch):
        # By the commit if the branch has moved since it was looked up.
        for revision in dict.fromkeys([branch, commit]):
            folder = snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[glob.escape(path) for path in paths],
                cache_dir=cache,
                endpoint=constants.ENDPOINT,
                library_name="rmtscan",
            )
            if Path(folder).name == commit:
                break
    missing = [path for path in paths if cached_file(repository, commit, path) is None]
    if missing:
        raise CheckpointError(f"{printable(missing[0])} of {printable(repository)} was not downloaded: try again")
