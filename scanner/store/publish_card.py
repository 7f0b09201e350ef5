"""The card of a published store: YAML that tells the Hub which files are which table, and what a reader needs to know."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

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
_ABOUT = {
    "scans": "one row a scan: the model, its revision, the method (JSON), what was counted",
    "matrices": "one row a weight matrix: σ and the edges of the bulk, outliers, ranks, norms, mean p-values",
    "vectors": "one row a singular triplet: value, region, and for the left (u) and right (v) vector the Kolmogorov-Smirnov "
    "distance to the Gaussian, its p-value, participation ratio and largest entry",
    "failures": "one row a tensor that could not be analysed, and why",
    "controls": "random matrices of the same shapes through the same code: what noise looks like",
    "comparisons": "one row a pair of models that were compared",
    "pairs": "one row a pair of matrices: how far fine-tuning moved it, outliers before and after, intruders",
    "pair_vectors": "one row a singular triplet of a pair: before and after, and its best match among the base vectors",
    "pair_subspaces": "overlap and principal angles of each tenth of a pair's singular vectors",
    "experiments": "one row a run with forward passes",
    "overlaps": "overlap of singular vectors with the eigenvectors of the activations' covariance",
    "activation_spectra": "eigenvalues of that covariance",
    "ablations": "what a model loses when singular values are removed",
    "finetunes": "accuracy after fine-tuning with singular values removed before or after",
}
_MODELS_SHOWN = 100


def card(scans: Sequence[Mapping[str, object]], rows: Mapping[str, int], *, name: str | None, license_id: str) -> str:
    """The text of README.md.

    Args:
        scans: rows of table `scans`, as published.
        rows: number of rows of every table that is published.
        name: the dataset's name; None: made from the models.
        license_id: the licence, as the Hub calls it.
    """
    models = list(dict.fromkeys(str(scan["model"]) for scan in scans))
    title = name or f"rmtscan: {models[0] if len(models) == 1 else f'{len(models)} models'}"
    shown = [_model_line(scan) for scan in scans[:_MODELS_SHOWN]]
    if len(scans) > _MODELS_SHOWN:
        shown.append(f"| and {len(scans) - _MODELS_SHOWN} more, see table `scans` | | | | | |")
    return Template(_TEMPLATE.read_text("utf-8")).substitute(
        license=license_id,
        name=json.dumps(_plain(title), ensure_ascii=False),  # a JSON string is a YAML string: no name can mean anything
        size=json.dumps(next((text for limit, text in _SIZES.items() if sum(rows.values()) < limit), _LARGEST)),
        configs="\n".join(_config(table) for table in rows),
        title=_markdown(title),
        version=__version__,
        models="\n".join(shown),
        tables="\n".join(f"| `{table}` | {count:,} | {_ABOUT[table]} |" for table, count in rows.items()),
    )


def _config(table: str) -> str:
    lines = [f"- config_name: {table}", f'  data_files: "{table}/*.parquet"']
    return "\n".join([*lines, "  default: true"] if table == _MAIN else lines)


def _model_line(scan: Mapping[str, object]) -> str:
    revision = str(scan.get("revision") or "")[:12]
    counts = " | ".join(f"{scan.get(column) or 0:,}" for column in ("matrices", "vectors", "failed", "skipped"))
    return f"| {_markdown(str(scan['model']))} | {_markdown(revision)} | {counts} |"


def _plain(text: str) -> str:
    """Names come from strangers: no line break, nothing that steers a terminal or turns the direction of writing."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _markdown(text: str) -> str:
    """The text as Markdown shows it, without a meaning to any of its characters."""
    plain = _plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in "\\`*_[]|#~$!" else char for char in plain)
