"""A site as a static Space of the Hugging Face Hub: the folder with the card that the Hub reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from scanner.errors import StoreError
from scanner.site.writing import Site, write_site
from scanner.store import Store

CARD = "README.md"
_MARKDOWN = re.compile(r"([\\`*_{}[\]()<>#+!|~&@$:^-])")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def write_space(
    store: Store,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    license_id: str = "cc-by-4.0",
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Site:
    """Write the site of a store and the card of a static Space beside it.

    Args:
        store: the store to read.
        folder: the folder; an earlier one is brought up to date.
        name: title of the Space; None: derived from the number of models.
        license_id: identifier of a license as the Hub writes it.
        force: write into a folder that has other content, which is kept.
        progress: called with the name of each model that is written.

    Raises:
        ScannerError: see `scanner.site.write_site`; or `license_id` is no identifier.
    """
    if _LICENSE.fullmatch(license_id) is None:
        raise StoreError(
            f"`license_id` {license_id!r} is not a license identifier of the Hub: use one such as cc-by-4.0, mit or other"
        )
    site = write_site(store, folder, force=force, keep=(CARD,), progress=progress)
    models = "1 model" if site.models == 1 else f"{site.models} models"
    title = " ".join((name or f"Random matrix scan of {models}").split())[:100]
    (Path(site.path) / CARD).write_text(_card(title, models, license_id), "utf-8")
    return site


def _card(title: str, models: str, license_id: str) -> str:
    heading = _MARKDOWN.sub(r"\\\1", title)
    return f"""---
title: {json.dumps(title)}
emoji: 📈
colorFrom: blue
colorTo: gray
sdk: static
app_file: index.html
pinned: false
license: {license_id}
tags:
- random-matrix-theory
- rmtscan
---

# {heading}

How the weights of {models} deviate from random matrices, by layer, role and singular vector. Written by
`rmtscan publish --space`; the files are static, and the pages fetch nothing from other hosts.
"""
