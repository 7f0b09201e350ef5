"""The page of a report: findings, figures, tables and provenance of some models of a store, rendered to one HTML file.

The file contains its scripts, style and data, and its content security policy forbids every request. Names and other strings from
a checkpoint are always inserted as text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from scanner import display
from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures import FIGURES
from scanner.figures.rendering import in_script, library
from scanner.report import findings, wording
from scanner.report.anchors import Anchors, slug
from scanner.report.explorer import budget, explorer
from scanner.report.models import choose_models
from scanner.report.statements import rows_of
from scanner.store import Store
from scanner.templates import environment
from scanner.version import __version__

_HERE = Path(__file__).resolve().parent
CHARTS, THEME, STYLE = _HERE / "charts.js", _HERE / "theme.js", _HERE / "report.css"
"""Scripts and style that the site has, too."""
MOST_DRAWN = 6
"""Maximal number of models (and of pairs) with figures; tables and findings are not limited."""
MOST_ROWS = 1000
"""Maximal number of rows of a table; longer tables keep the least random or the most changed matrices."""
MOST_NAMES = 40
_MODEL_FIGURES: tuple[tuple[str, dict[str, object]], ...] = (
    ("decompose", {}),
    ("pvalues_by_role", {"side": "v"}),
    ("pvalues_by_role", {"side": "u"}),
    ("spectra_by_role", {}),
    ("depth", {}),
    ("outliers", {}),
    ("heads", {}),
)
MODEL_QUERIES: Mapping[str, Mapping[str, object]] = {
    "decompose": {"layers": False},
    "small_end": {"layers": False},
    "outlier_share": {},
    "most_learned": {"top": 1},
    "role_consistency": {},
}
"""Named queries that the findings about a model are made from, with their parameters."""
_PAIR_FIGURES = ("pair_spectra", "overlap")
_EXPERIMENT_FIGURES = ("ablation", "activation_overlap", "activation_spectrum", "slicing", "finetuning", "lazy")
"""Figures of runs of experiments; those of which the store has no run are left out."""
MOST_RUNS = 50
_NEEDS = re.compile(r" ?Needs (?:a run|runs|a comparison)\b[^.]*\.(?= |$)")
_SIDES = {"v": "right vectors (input side)", "u": "left vectors (output side)"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Summary of a written report."""

    path: Path
    models: tuple[str, ...]
    pairs: int
    bytes: int

    def __repr__(self) -> str:
        pairs = f", {display.counted(self.pairs, 'pair')}" if self.pairs else ""
        models = display.counted(len(self.models), "model")
        return f"Report({models}{pairs}, {self.bytes / 1e6:.1f} MB: {display.plain(self.path)!r})"


def write_report(
    store: Store,
    references: Sequence[str],
    path: str | os.PathLike[str],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Write the report of some models of a store.

    Args:
        store: the store to read.
        references: names of scanned models, or the places from which they were scanned; empty for all models.
        path: the HTML file to write.
        progress: called with the name of the model or pair that is being processed.

    Raises:
        ScannerError: a model is not scanned or its scan is not finished, the store is empty, or the file cannot be written.
    """
    target = _writable(Path(path))
    models = choose_models(store, references)
    page, pairs = render(store, models, progress=progress)
    content = page.encode("utf-8", "replace")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        raise ScannerError(f"{str(target)!r} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return Report(path=target, models=tuple(models), pairs=pairs, bytes=len(content))


def render(store: Store, models: Sequence[str], *, progress: Callable[[str], None] = lambda _: None) -> tuple[str, int]:
    """Return the page of some models, and the number of pairs in it."""
    matrices = {model: rows_of(store, "matrices", model=model, heads=False) for model in models}
    anchors = Anchors()
    for number, model in enumerate(models):
        for row in matrices[model]:
            row["anchor"] = anchors.matrix(f"m{number}", row)
    points, every = budget({model: len(rows) for model, rows in matrices.items()})
    charts: dict[str, Any] = {}
    sections, explored = [], []
    experiments: list[dict[str, Any]] = []
    controls = store.query("control_check").to_pylist()
    for number, model in enumerate(models):
        progress(f"{printable(model)} ({number + 1} of {len(models)})")
        section = _model(store, model, matrices[model], controls, f"m{number}")
        if number < MOST_DRAWN:
            section["figures"] = _draw_all(store, model, f"m{number}", charts)
        sections.append(section)
        made = _experiments(store, model, f"e{number}", charts if len(experiments) < MOST_DRAWN else None)
        experiments += [made] if made else []
        if matrices[model]:
            explored.append(explorer(store, model, matrices[model], points=points, every=every[model]))
    pairs = [row for row in rows_of(store, "comparisons") if {row["base_model"], row["tuned_model"]} <= {*models}]
    pair_sections = []
    named: set[tuple[str, str]] = set()
    for number, pair in enumerate(pairs):
        progress(f"{printable(pair['base_model'])} -> {printable(pair['tuned_model'])}")
        section = _pair(store, pair, f"p{number}")
        # Figures select a pair by name: of several revisions, they draw the pair that was compared last.
        newest = (pair["base_model"], pair["tuned_model"]) not in named
        named.add((pair["base_model"], pair["tuned_model"]))
        if newest and len(named) <= MOST_DRAWN:
            section["figures"] = _draw_pair(store, pair, f"p{number}", charts)
        pair_sections.append(section)
    page = _templates().get_template("report.html.j2")
    text = page.render(
        models=sections,
        pairs=pair_sections,
        cards=_cards([(one["name"], one["findings"]) for one in sections]),
        pair_cards=_cards(
            [(f"{one['base']} \N{RIGHTWARDS ARROW} {one['tuned']}", one["findings"]) for one in pair_sections]
        ),
        experiments=experiments,
        explorer=in_script({"models": explored}) if explored else None,
        every=max(every.values(), default=1),
        charts=in_script(charts),
        library=library(),
        style=STYLE.read_text("utf-8"),
        theme=THEME.read_text("utf-8"),
        script=CHARTS.read_text("utf-8") + (_HERE / "report.js").read_text("utf-8"),
        version=__version__,
        most_drawn=MOST_DRAWN,
        most_rows=MOST_ROWS,
        counted=sum(not model.startswith("delta:") for model in models) or len(models),
        deciles=range(1, 11),
    )
    return text, len(pairs)


def _writable(path: Path) -> Path:
    if path.is_dir():
        raise ScannerError(f"{str(path)!r} is a folder: give the path of a file, such as {str(path / 'report.html')!r}")
    if not path.parent.is_dir():
        raise ScannerError(f"no folder {str(path.parent)!r}: create it before writing {path.name!r}")
    if path.suffix.lower() not in {".html", ".htm"}:
        raise ScannerError(f"{str(path)!r}: a report is an HTML file, so the suffix must be .html")
    return path


def findings_of_model(
    model: str,
    matrices: Sequence[Mapping[str, Any]],
    scans: Sequence[Mapping[str, Any]],
    controls: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[tuple[str, wording.Finding]]:
    """Return what stands out in one model, each with its kind, a short title.

    Args:
        model: name of the model.
        matrices: rows of statement `matrices`.
        scans: rows of statement `scans`, newest first.
        controls: rows of query `control_check`, which are the same for all models.
        asked: rows of each query in `MODEL_QUERIES`, asked with the parameters there.
    """
    shapes = {(row["rows"], row["cols"]) for row in matrices}
    found = (
        ("Failed tensors", findings.coverage(scans)),
        ("Scale, head structure and direction", findings.decomposition(asked["decompose"], model)),
        ("The small end of the spectrum", findings.small_end(asked["small_end"], model)),
        ("Outside the bulk", findings.outliers(asked["outlier_share"], model)),
        ("Depth", findings.depth(matrices, asked["most_learned"], model)),
        ("Similarity of the blocks", findings.consistency(asked["role_consistency"], model)),
        ("Estimates of \N{GREEK SMALL LETTER SIGMA}", findings.sigma(matrices, model)),
        ("Stored type", findings.stored_as(matrices)),
        ("Random controls", findings.controls(controls, shapes)),
    )
    return [(kind, finding) for kind, finding in found if finding is not None]


def _model(
    store: Store, model: str, matrices: list[dict[str, Any]], controls: list[dict[str, Any]], key: str
) -> dict[str, Any]:
    scans = rows_of(store, "scans", model=model)
    asked = {name: store.query(name, model=model, **given).to_pylist() for name, given in MODEL_QUERIES.items()}
    found = findings_of_model(model, matrices, scans, controls, asked)
    shown = (
        sorted(matrices, key=lambda row: (row["p"] is None, row["p"]))[:MOST_ROWS]
        if len(matrices) > MOST_ROWS
        else matrices
    )
    return {
        "key": key,
        "name": printable(model),
        "scans": [_scan(scan) for scan in scans],
        "reference": wording.in_shell(_reference(scans[0])),
        "options": _options(scans[0]),
        "findings": found,
        "coverage": _coverage(scans),
        "failures": rows_of(store, "failures", model=model, most=MOST_ROWS),
        "unfinished": sum(scan.parts for scan in store.unfinished() if scan.model == model),
        "roles": _with_anchors(key, store.query("role_table", model=model).to_pylist()),
        "matrices": shown,
        "all_matrices": len(matrices),
        "figures": [],
    }


def _with_anchors(key: str, roles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add a fragment to every row of query `role_table`."""
    anchors = Anchors()
    for row in roles:
        row["anchor"] = anchors.new(
            key, "role", row["role"], row["module"], {"u": "left", "v": "right"}.get(row["side"])
        )
    return roles


def _scan(scan: Mapping[str, Any]) -> dict[str, Any]:
    method, environment = (_object(scan[column]) for column in ("method", "environment"))
    return {
        **scan,
        "revision": printable(str(scan["revision"] or ""))[:12],
        "method": method,
        "versions": {
            name: value for name, value in environment.items() if name not in {"workers", "gpus_per_worker", "nodes"}
        },
        "workers": environment.get("workers"),
        "gpus": bool(environment.get("gpus_per_worker")),
        "selection": _selection(method),
    }


def _selection(method: Mapping[str, Any]) -> str:
    words = [f"roles {', '.join(map(str, method['only']))}"] if method.get("only") else []
    words += [f"layers {', '.join(map(str, method['layers']))}"] if method.get("layers") else []
    words += [f"with {name}" for name in ("embeddings", "heads", "products") if method.get(name)]
    return "; ".join(words) or "all weight matrices of the blocks"


def _reference(scan: Mapping[str, Any]) -> str:
    """Return the reference for scanning the model again: a source that others can reach, or else the name."""
    source = str(scan["source"] or "")
    return source.rstrip("/") if "://" in source and not str(scan["model"]).startswith("delta:") else str(scan["model"])


def _options(scan: Mapping[str, Any]) -> str:
    """Return the options of `rmtscan scan` that differ from the defaults."""
    method = _object(scan["method"])
    words = [f"--roles {','.join(map(str, method['only']))}"] if method.get("only") else []
    words += [f"--layers {','.join(map(str, method['layers']))}"] if method.get("layers") else []
    words += [f"--{name}" for name in ("embeddings", "heads", "products") if method.get(name)]
    words += ["--head-mass"] if method.get("head_mass") else []
    words += [
        f"--{name} {method[name]}"
        for name, usual in (("sigma", "median"), ("null", "table"))
        if method.get(name, usual) != usual
    ]
    return "".join(f" {word}" for word in words)


def _coverage(scans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers of analyzed, skipped and failed tensors of the newest scan, and the reasons for skipping."""
    newest = scans[0]
    reasons = _object(newest["skipped_tensors"])
    skipped = [
        {"reason": str(reason), "count": len(names), "names": [str(name) for name in names[:MOST_NAMES]]}
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
        if isinstance(names, list)
    ]
    counts = {"analyzed": newest["matrices"], "skipped": newest["skipped"] or 0, "failed": newest["failed"]}
    return {**counts, "total": sum(counts.values()) or 1, "reasons": skipped}


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def findings_of_pair(
    pair: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], deciles: Sequence[Mapping[str, Any]]
) -> list[tuple[str, wording.Finding]]:
    """Return what fine-tuning changed, each finding with its kind.

    Args:
        pair: row of statement `comparisons`.
        rows: rows of statement `pairs` of this pair.
        deciles: rows of query `pair_by_decile` of these revisions.
    """
    base, tuned = pair["base_model"], pair["tuned_model"]
    changes = f"rmtscan query pair_changes{wording.parameter('base', base)}{wording.parameter('tuned', tuned)}"
    found = (
        ("Size of the change", findings.change(rows, changes)),
        ("Where in the spectrum", findings.turned(deciles, base, tuned)),
        ("Outliers and intruders", findings.gained(rows, changes)),
    )
    return [(kind, finding) for kind, finding in found if finding is not None]


def _pair(store: Store, pair: Mapping[str, Any], key: str) -> dict[str, Any]:
    base, tuned = pair["base_model"], pair["tuned_model"]
    rows = rows_of(store, "pairs", base=base, tuned=tuned, model_pair=pair["model_pair"])
    revisions = (pair["base_revision"], pair["tuned_revision"])
    deciles = [
        row
        for row in store.query("pair_by_decile", base=base, tuned=tuned).to_pylist()
        if (row["base_revision"], row["tuned_revision"]) == revisions
    ]
    return {
        **pair,
        "key": key,
        "base": printable(base) if base != tuned else f"{printable(base)} ({printable(str(revisions[0]))})",
        "tuned": printable(tuned) if base != tuned else f"{printable(tuned)} ({printable(str(revisions[1]))})",
        "base_reference": wording.in_shell(base),
        "tuned_reference": wording.in_shell(tuned),
        "findings": findings_of_pair(pair, rows, deciles),
        "matrices": rows[:MOST_ROWS],
        "all_matrices": len(rows),
        "identical": sum(row["identical"] for row in rows),
        "unmatched_names": _names(pair["unmatched_tensors"])[:MOST_NAMES],
        "figures": [],
    }


def _names(text: str | None) -> list[str]:
    """Return the names in a JSON value of any shape, in order."""

    def walk(value: Any) -> list[str]:
        if isinstance(value, dict):  # a failed matrix has a counterpart
            return [name for key, part in value.items() if key != "failed" for name in walk(part)]
        if isinstance(value, list):
            return [name for part in value for name in walk(part)]
        return [str(value)]

    try:
        return walk(json.loads(text)) if text else []
    except ValueError:
        return []


def _cards(named: Sequence[tuple[str, Sequence[tuple[str, wording.Finding]]]]) -> list[dict[str, Any]]:
    """Return one card per kind of finding, in the order of the kinds; equal headlines of several models are said once."""
    kinds: dict[str, dict[str, list[tuple[str, wording.Finding]]]] = {}
    for name, found in named:
        for kind, one in found:
            kinds.setdefault(kind, {}).setdefault(one.headline, []).append((name, one))
    order = [kind for _, found in named for kind, _ in found]
    first = {kind: min(at for at, one in enumerate(order) if one == kind) for kind in kinds}
    return [
        {
            "kind": kind,
            "anchor": slug(kind),
            "warning": any(one.warning for said in headlines.values() for _, one in said),
            "said": [
                {
                    "headline": headline,
                    "of": [{"name": name, "detail": one.detail, "query": one.query} for name, one in said],
                }
                for headline, said in headlines.items()
            ],
        }
        for kind, headlines in sorted(kinds.items(), key=lambda item: first[item[0]])
    ]


def _experiments(store: Store, model: str, key: str, charts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the runs of experiments on a model, their controls and figures; None if there are none."""
    runs = [row for row in store.query("experiments", model=model).to_pylist() if row["kind"] is not None]
    if not runs:
        return None
    figures = []
    for number, name in enumerate(_EXPERIMENT_FIGURES):
        if charts is not None and name in FIGURES:
            given = {"base" if "base" in FIGURES[name].parameters else "model": model}
            figures += _draw(store, name, f"{key}-{number}", charts, "", **given)
    controls = store.query("ablation_controls", model=model).to_pylist()
    return {
        "key": key,
        "name": printable(model),
        "runs": runs[:MOST_RUNS],
        "all_runs": len(runs),
        "figures": figures,
        "controls": controls[:MOST_ROWS],
        "query": f"rmtscan query experiments{wording.parameter('model', model)}",
        "controls_query": f"rmtscan query ablation_controls{wording.parameter('model', model)}",
    }


def _draw_all(store: Store, model: str, key: str, charts: dict[str, Any]) -> list[dict[str, str]]:
    drawn = []
    for number, (name, given) in enumerate(_MODEL_FIGURES):
        title = f": {_SIDES[str(given['side'])]}" if "side" in given else ""
        drawn += _draw(store, name, f"{key}-{number}", charts, title, model=model, **given)
    return drawn


def _draw_pair(store: Store, pair: Mapping[str, Any], key: str, charts: dict[str, Any]) -> list[dict[str, str]]:
    drawn = []
    for number, name in enumerate(_PAIR_FIGURES):
        drawn += _draw(store, name, f"{key}-{number}", charts, "", base=pair["base_model"], tuned=pair["tuned_model"])
    return drawn


def _draw(store: Store, name: str, key: str, charts: dict[str, Any], more: str, **given: Any) -> list[dict[str, str]]:
    """Return the texts of a figure and add its specification to `charts`; empty if the store lacks the data."""
    if name not in FIGURES:
        return []
    figure = FIGURES[name]
    try:
        specification = figure.draw(store, interactive=True, **given).to_dict()
    except ScannerError:  # such as heads that were not scanned, or a model without blocks
        return []
    heading = specification.pop("title", None)  # the page shows it above the chart
    below = heading.get("subtitle") if isinstance(heading, dict) else None
    note = "; ".join(map(str, below[1:])) if isinstance(below, list) else ""  # the first line is the model
    charts[key] = specification
    return [{"key": key, "title": f"{figure.title}{more}", "about": _about(figure.about), "note": note}]


def _about(text: str) -> str:
    """Return what a figure shows without the sentence that says what it needs: it is drawn."""
    return _NEEDS.sub("", text)


@cache
def _templates() -> jinja2.Environment:
    filters: dict[str, Callable[..., Any]] = {
        "shown": _shown,
        "shown_long": _shown_long,
        "figures3": _figures3,
        "when": _when,
        "p": wording.number,
        "heat": _heat,
        "sortable": _sortable,
    }
    return environment(_HERE, filters)


def _shown(value: object) -> str:
    """Return a text from a checkpoint without control characters and not too long."""
    return "" if value is None else printable(str(value))


def _shown_long(text: str) -> str:
    """Return a sentence without control characters; the names in it are short already."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _figures3(value: float | None) -> str:
    """Format a number with three significant digits."""
    if value is None:
        return ""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def _when(value: datetime | None) -> str:
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M UTC")


def _heat(p: float | None) -> str:
    """Return the class of the background of a p-value: `h1` to `h16`, darker blue for lower values; none from 0.5 upward."""
    depth = 0 if p is None else round(16 * max(0.0, min(1.0, (0.5 - p) / 0.5)))
    return f"h{depth}" if depth else ""


def _sortable(value: float | None) -> str:
    """Return a number as short as sorting a table needs it."""
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
