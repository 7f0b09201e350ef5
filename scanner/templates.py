"""Jinja environments of pages: everything is escaped, and a value that is missing is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2


def environment(folder: Path, filters: Mapping[str, Callable[..., Any]]) -> jinja2.Environment:
    """Return an environment for the templates in a folder; it compiles each template once.

    Args:
        folder: the folder with the templates.
        filters: filters that the templates use, by name.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= filters
    return made
