"""The digest of a night as Markdown, HTML and JSON, and the index and Atom feed of all nights.

Everything is read from the store, so that a digest can be written again at any time. What stands out is what named queries say.
Names come from the Hub: they are escaped in every format.
"""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from huggingface_hub import constants

from scanner.checkpoint.names import printable
from scanner.fleet.releases import failed_upgrades, is_night
from scanner.store import Store
from scanner.store.files import StoreFiles
from scanner.store.queries import find_query
from scanner.store.tables import json_object
from scanner.templates import environment
from scanner.version import __version__

_HERE = Path(__file__).resolve().parent
_ATOM = "http://www.w3.org/2005/Atom"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
#: Characters that mean something in Markdown, and those of addresses and mentions, which some renderers turn into links.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&@$:^])|(?<=www)(\.)", re.IGNORECASE)
#: Nights in the feed.
_MOST_ENTRIES = 50
#: Rows of a table in Markdown and HTML; JSON has all of them.
_MOST_ROWS = 100
_UPGRADE = "its scan of an earlier method could not be computed again"


@dataclass(frozen=True, kw_only=True)
class Section:
    """What stands out: one named query."""

    query: str
    columns: Mapping[str, str]
    """Columns that are shown -> heading."""
    none: str
    """What is said if there is nothing."""


SECTIONS = (
    Section(
        query="broken_uploads",
        columns={
            "model": "model",
            "defect": "defect",
            "matrices": "matrices",
            "share": "share",
            "example": "for example",
        },
        none="No matrix is zero, not finite, or untrained.",
    ),
    Section(
        query="near_copies",
        columns={
            "model": "model",
            "other_model": "resembles",
            "identical": "identical",
            "near": "almost identical",
            "share": "share",
            "declared": "declared as base",
        },
        none="No model has the matrices of another one.",
    ),
    Section(
        query="standout_roles",
        columns={
            "model": "model",
            "role": "role",
            "measure": "measure",
            "value": "value",
            "median": "others",
            "z": "z",
            "models": "compared with",
        },
        none="No role differs from the same role in other models, or the store has too few other models.",
    ),
    Section(
        query="standout_small_ends",
        columns={
            "model": "model",
            "role": "role",
            "side": "side",
            "p": "mean p",
            "z": "z",
            "p_scale": "given scales",
            "differs_by": "differs by",
            "vectors": "vectors",
        },
        none="No role differs much from i.i.d. in its smallest singular values.",
    ),
    Section(
        query="standout_intruders",
        columns={
            "tuned_model": "model",
            "base_model": "base",
            "intruders": "intruders",
            "per_matrix": "per matrix",
            "relative_change": "median change",
        },
        none="No fine-tune has many intruder dimensions, or nothing was compared.",
    ),
)
"""In the order of the digest."""


def write_digest(store: Store, night_id: str, url: str) -> str:
    """Write the digest of a night, and the index and feed of all nights; every file is replaced as a whole.

    Args:
        store: the store.
        night_id: the night.
        url: folder or fsspec URL; created if it does not exist.

    Returns:
        The path of the HTML file.

    Raises:
        ValueError: there is no such night.
        StoreError: the store cannot be read, or the folder cannot be written.
    """
    content = digest(store, night_id)
    nights = nights_of(store)
    files = StoreFiles(url)
    files.write_bytes(f"{night_id}.json", as_json(content).encode())
    files.write_bytes(f"{night_id}.md", as_markdown(content).encode())
    files.write_bytes(f"{night_id}.html", as_html(content).encode())
    files.write_bytes("index.json", as_json({"nights": nights}).encode())
    files.write_bytes("index.html", index_html(nights).encode())
    files.write_bytes("feed.xml", feed(nights))
    return files.full(f"{night_id}.html") if files.local else f"{files.url}/{night_id}.html"


def digest(store: Store, night_id: str) -> dict[str, Any]:
    """Return what a digest says, as JSON types.

    Raises:
        ValueError: there is no such night.
        StoreError: the store cannot be read.
    """
    night = next((night for night in nights_of(store) if night["night_id"] == night_id), None)
    if night is None:
        raise ValueError(f"there is no night {night_id!r} in the store {store.url!r}")
    changed = _plain(store.query("releases", night=night_id).to_pylist())
    waiting = _plain(store.query("releases", state="waiting").to_pylist())
    tried = [one for one in changed if one["state"] == "waiting" and one["attempts"]]
    upgrades = [
        {"repository": one.repository, "commit": one.commit, "state": "failed", "reason": f"{_UPGRADE}: {one.reason}"}
        for one in failed_upgrades(night["failed_upgrades"])
    ]
    return {
        "night": night,
        "new": [one for one in changed if one["state"] in ("scanned", "planned")],
        "stands_out": {
            section.query: _plain(store.query(section.query, night=night_id).to_pylist()) for section in SECTIONS
        },
        "failed": [*(one for one in changed if one["state"] == "failed"), *tried, *_plain(upgrades)],
        "skipped": [one for one in changed if one["state"] == "skipped"],
        "waiting": waiting,
        "scanner_version": __version__,
    }


def as_json(content: Mapping[str, Any]) -> str:
    """Return the digest as JSON: ASCII, so that no character of a name means anything to what reads it."""
    return json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def as_markdown(content: Mapping[str, Any]) -> str:
    """Return the digest as Markdown."""
    night = content["night"]
    lines = [f"# Nightly scan of {_day(night['started_at'])}", "", _md(summary(night)), ""]
    lines += _problems(night)
    lines += ["## What is new", ""]
    lines += _md_table(
        content["new"],
        {
            "repository": "model",
            "commit": "commit",
            "parameters": "parameters",
            "matrices": "matrices",
            "reason": "note",
        },
        "No release was scanned.",
    )
    lines += ["## What stands out", ""]
    for section in SECTIONS:
        rows = content["stands_out"][section.query]
        lines += [f"### {find_query(section.query).title}", ""]
        lines += _md_table(rows, section.columns, section.none)
    for title, key, none in _LISTS:
        lines += [f"## {title}", ""]
        lines += _md_table(content[key], {"repository": "model", "commit": "commit", "reason": "reason"}, none)
    lines.append(f"rmtscan {content['scanner_version']}, night {night['night_id']}")
    return "\n".join(lines) + "\n"


def as_html(content: Mapping[str, Any], *, back: str | None = None) -> str:
    """Return the digest as one HTML file that loads nothing from anywhere.

    Args:
        content: what `digest` returns.
        back: address of the page with all nights, for a digest without the other files beside it; None: with them.
    """
    night = content["night"]
    sections = [
        {
            "title": find_query(section.query).title,
            "about": find_query(section.query).about,
            "query": f"rmtscan query {section.query} --param night={night['night_id']}",
            "columns": section.columns,
            "rows": content["stands_out"][section.query],
            "nothing": section.none,
        }
        for section in SECTIONS
    ]
    lists = [{"title": title, "rows": content[key], "nothing": none} for title, key, none in _LISTS]
    return _template("digest").render(
        night=night,
        day=_day(night["started_at"]),
        summary=summary(night),
        problems=_problem_lines(night),
        new=content["new"],
        sections=sections,
        lists=lists,
        most=_MOST_ROWS,
        version=content["scanner_version"],
        back=back,
    )


def index_html(nights: Sequence[Mapping[str, Any]]) -> str:
    """Return the index of all nights, the newest first."""
    return _template("index").render(nights=nights, version=__version__)


def feed(nights: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the Atom feed of the newest nights."""
    ET.register_namespace("", _ATOM)
    root = ET.Element(f"{{{_ATOM}}}feed")

    def add(parent: ET.Element, name: str, text: str | None = None, **attributes: str) -> ET.Element:
        element = ET.SubElement(parent, f"{{{_ATOM}}}{name}", attributes)
        element.text = text
        return element

    add(root, "title", "Nightly scans of new releases")
    add(root, "id", "urn:rmtscan:nights")
    newest = nights[0]["finished_at"] or nights[0]["started_at"] if nights else datetime.now(UTC).isoformat()
    add(root, "updated", newest)
    add(add(root, "author"), "name", "rmtscan")
    add(root, "link", href="feed.xml", rel="self")
    add(root, "link", href="index.html")
    for night in nights[:_MOST_ENTRIES]:
        entry = add(root, "entry")
        add(entry, "title", f"Nightly scan of {_day(night['started_at'])}")
        add(entry, "id", f"urn:rmtscan:night:{night['night_id']}")
        add(entry, "updated", night["finished_at"] or night["started_at"])
        add(entry, "link", href=f"{night['night_id']}.html")
        add(entry, "summary", summary(night))
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def summary(night: Mapping[str, Any]) -> str:
    """Say in one sentence what a night did."""
    counts = {
        name: night[name] or 0 for name in ("listed", "new", "scanned", "failed", "skipped", "waiting", "upgraded")
    }
    parts = [f"{counts[name]:,} {name}" for name in ("scanned", "failed", "skipped", "waiting")]
    text = f"Of {counts['listed']:,} listed models, {counts['new']:,} were new releases: {', '.join(parts)}."
    if counts["upgraded"]:
        text += f" {counts['upgraded']:,} scans of an earlier method were computed again."
    return text


_LISTS = (
    ("What failed, and why", "failed", "Nothing failed."),
    ("What waits", "waiting", "Nothing waits."),
    ("What was skipped", "skipped", "Nothing was skipped."),
)


def nights_of(store: Store) -> list[dict[str, Any]]:
    """Return the nights of a store as JSON types, the newest first.

    Raises:
        StoreError: the store cannot be read.
    """
    return [row for row in _plain(store.query("nights").to_pylist()) if is_night(row["night_id"]) and row["started_at"]]


def _plain(value: Any) -> Any:
    """Convert rows to JSON types; names lose control characters here, once for all formats."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in value)
    return value


def _day(text: str) -> str:
    return text[:10]


def _problem_lines(night: Mapping[str, Any]) -> list[str]:
    found = json_object(f'{{"problems": {night["problems"] or "[]"}}}').get("problems", [])
    return [printable(str(line)) for line in found] if isinstance(found, list) else []


# ---- cells


def cell(name: str, value: Any) -> str:
    """Return a value as text for people; not escaped."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("commit", "revision", "other_revision"):
        return str(value)[:12]
    if name in ("share", "relative_change") and isinstance(value, int | float):
        return f"{100 * value:.3g} %"
    if isinstance(value, int):
        return _with_unit(value) if name in ("parameters", "bytes") else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    text = str(value)
    return text if len(text) <= 300 else f"{text[:299]}…"


def _with_unit(value: float) -> str:
    for unit in ("", "K", "M", "B"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def _md(text: str) -> str:
    return _MARKDOWN.sub(lambda found: "\\" + found[0], text)


def _md_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], none: str) -> list[str]:
    if not rows:
        return [none, ""]
    lines = [f"| {' | '.join(columns.values())} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_md(cell(name, row[name])) for name in columns)} |" for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        lines += ["", f"{len(rows) - _MOST_ROWS:,} more are in the JSON file."]
    return [*lines, ""]


def _problems(night: Mapping[str, Any]) -> list[str]:
    lines = [f"* {_md(line)}" for line in _problem_lines(night)]
    return ["## Repositories that could not be looked up", "", *lines, ""] if lines else []


def _address(repository: object) -> str | None:
    """Return the page of a repository on the Hub; None for a name that is no repository of the Hub."""
    if not isinstance(repository, str) or not _REPOSITORY.fullmatch(repository):
        return None
    return f"{constants.ENDPOINT}/{quote(repository)}"


@cache
def _environment() -> jinja2.Environment:
    made = environment(_HERE, {"address": _address})
    made.globals["cell"] = cell
    made.globals["style"] = (_HERE / "digest.css").read_text("utf-8")
    return made


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(f"{name}.html.j2")
