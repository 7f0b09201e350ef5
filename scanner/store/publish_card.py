"""The card of a published store: YAML that tells the Hub which files belong to which table, and a description for readers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from scanner.store.tables import TABLES
from scanner.version import __version__

_TEMPLATE = Path(__file__).resolve().with_suffix(".md")
_MAIN = "matrices"
_SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
    100_000_000: "10M<n<100M",
    1_000_000_000: "100M<n<1B",
}
_LARGEST = "1B<n<10B"
_MODELS_SHOWN = 100


def card(scans: Sequence[Mapping[str, object]], rows: Mapping[str, int], *, name: str | None, license_id: str) -> str:
    """Return the text of README.md.

    Args:
        scans: rows of table `scans`, as published.
        rows: number of rows of every published table.
        name: name of the dataset; None: derived from the models.
        license_id: the license, as the Hub writes it.
    """
    models = list(dict.fromkeys(str(scan["model"]) for scan in scans))
    title = name or f"rmtscan: {models[0] if len(models) == 1 else f'{len(models)} models'}"
    shown = [_model_line(scan) for scan in scans[:_MODELS_SHOWN]]
    if len(scans) > _MODELS_SHOWN:
        shown.append(f"| and {len(scans) - _MODELS_SHOWN} more, see table `scans` | | | | | |")
    return Template(_TEMPLATE.read_text("utf-8")).substitute(
        license=license_id,
        name=json.dumps(
            _plain(title), ensure_ascii=False
        ),  # a JSON string is a YAML string, so that no name can be markup
        size=json.dumps(next((text for limit, text in _SIZES.items() if sum(rows.values()) < limit), _LARGEST)),
        configs="\n".join(_config(table) for table in rows),
        title=markdown(title),
        version=__version__,
        models="\n".join(shown),
        tables="\n".join(f"| `{table}` | {count:,} | {_about(table)} |" for table, count in rows.items()),
    )


def _about(table: str) -> str:
    about = TABLES[table]
    return f"{about.row}: {about.description}".replace("|", "\\|")


def _config(table: str) -> str:
    lines = [f"- config_name: {table}", f'  data_files: "{table}/*.parquet"']
    return "\n".join([*lines, "  default: true"] if table == _MAIN else lines)


def _model_line(scan: Mapping[str, object]) -> str:
    revision = str(scan.get("revision") or "")[:12]
    counts = " | ".join(f"{scan.get(column) or 0:,}" for column in ("matrices", "vectors", "failed", "skipped"))
    return f"| {markdown(str(scan['model']))} | {markdown(revision)} | {counts} |"


def _plain(text: str) -> str:
    """Replace control characters, line breaks and direction marks: names are untrusted."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def markdown(text: str) -> str:
    """Escape a text for Markdown: names are untrusted."""
    plain = _plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in "\\`*_[]|#~$!" else char for char in plain)
