"""`rmtscan show`: one scanned model on one screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len

from scanner.cli import options
from scanner.cli.answers import AnswerOptions, printer
from scanner.cli.output import DEFAULT_STORE, StoreOption, line_width
from scanner.cli.progress import waiting
from scanner.cli.tables import elide, number, view_of, wrapped
from scanner.plain import escaped

if TYPE_CHECKING:
    from rich.text import Text

    from scanner.store import Store

#: Cells of a line where there is no terminal, and at most: longer lines of text are hard to read.
_WIDTH, _MOST = 80, 120
#: Findings that are shown, and lines of strips.
_FINDINGS, _STRIPS = 6, 24
#: Cells of a line below which the strip has shorter numbers, and no outliers.
_NARROW = 76
#: Mean p-values at which the color of a cell changes, from learned to random, and the colors (of 256): a red and blue scale that
#: stays apart for color-blind readers.
_COLORS = ((0.05, 88), (0.15, 124), (0.25, 167), (0.35, 209), (0.42, 223), (0.58, 254), (0.65, 153), (1.01, 74))


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "show", show)


def show(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A scanned model: its name, or a part of it that no other name has.",
            show_default="the only model of the store",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="The newest revision that begins with this.", show_default="the newest"),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    table: AnswerOptions,
) -> None:
    """Show a scanned model on one screen: coverage, what stands out, p-values by role and decile, and what to do next.

    The strip has one line per role and side (v: input side, u: output side) and one cell per decile, from the smallest to the
    largest singular values, with the mean p-value of the singular vectors: 0.5 for random ones, and 0 where training shaped them.
    It is colored if the terminal has colors; NO_COLOR turns them off. With any of the options for tables (--columns, --wide,
    --rows, --all, --format, -o), only the rows of the strip are printed or written.

    Examples:

        rmtscan show my-model

        rmtscan show minilm --store results
    """
    from rich.text import Text

    from scanner.store import open_store
    from scanner.store.queries import find_query

    query = find_query("role_table")
    print_rows = printer(table, view_of(query), columns=[column.name for column in query.columns], what="the strip")
    with waiting(sys.stderr, "reading the store") as say:
        opened = open_store(store)
        name = _chosen(opened, model)
        say(f"asking about {name}")
        if table != AnswerOptions():
            answer = opened.query("role_table", model=name, revision=revision)
        else:
            width = min(line_width() or _WIDTH, _MOST)
            commands = _next(opened, name, model or name, store)
            lines = [*_screen(opened, name, revision, width), Text(""), Text("Next", style="bold")]
            lines += [Text(line) for command in commands for line in _folded(command, width)]
    if table != AnswerOptions():
        print_rows(answer)
    else:
        _print(lines)


def _chosen(store: Store, model: str | None) -> str:
    """Return the name of the model that is meant.

    Raises:
        ScannerError: it was not scanned, or none was named and there are several.
    """
    from scanner.checkpoint.names import printable
    from scanner.errors import ScannerError

    scanned = {str(row["model"]) for row in store.query("scans").to_pylist()}
    if model is None:
        whole = sorted(name for name in scanned if not name.startswith("delta:")) or sorted(scanned)
        if len(whole) == 1:
            return whole[0]
        if not whole:
            begun = [scan for scan in store.unfinished() if scan.model is not None]
            more = (
                f"; the scan of {printable(str(begun[0].model))!r} is not finished ({begun[0].parts} matrices so far)"
                if begun
                else ""
            )
            raise ScannerError(f"{store.url} has no finished scan{more}: rmtscan scan REF --store {store.url}")
        listed = ", ".join(map(printable, whole[:8])) + (f" and {len(whole) - 8} more" if len(whole) > 8 else "")
        raise ScannerError(f"the store has {len(whole)} models: name one of {listed}")
    name = store.find_model(model)
    if name not in scanned:
        raise ScannerError(f"{printable(name)!r} has results of experiments or comparisons, and no scan: scan it first")
    return name


def _screen(store: Store, model: str, revision: str | None, width: int) -> list[Text]:
    """Return the lines of the screen."""
    from rich.text import Text

    scans = store.query("scans", model=model, revision=revision).to_pylist()
    if not scans:
        from scanner.checkpoint.names import printable
        from scanner.errors import ScannerError

        raise ScannerError(
            f"{printable(model)!r} has no scan of a revision that begins with {printable(str(revision))!r}"
        )
    lines = [
        Text(line, style="bold" if at == 0 else "") for at, line in enumerate(_coverage(store, model, scans, width))
    ]
    lines += [Text(""), Text("What stands out", style="bold")]
    lines += [Text(line) for line in _stands_out(store, model, revision, width)]
    return [*lines, Text(""), *_strip(store, model, revision, width)]


def _coverage(store: Store, model: str, scans: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Return the name, and what of the model was scanned."""
    [overview] = store.query("fleet_overview", model=model, revision=scans[0]["revision"]).to_pylist() or [{}]
    newest = scans[0]
    about = [overview.get("architecture"), newest["format"]]
    if newest["parameters"]:
        about.append(f"{newest['parameters']:,} parameters ({newest['dtype']})")
    about += [f"revision {newest['revision']}"] if newest["revision"] else []
    about += [f"scanned {newest['finished_at']:%Y-%m-%d %H:%M} UTC"] if newest["finished_at"] else []
    counted = [
        f"{overview.get('matrices') or 0:,} matrices in {overview.get('layers') or 0} layers",
        f"{overview.get('slices'):,} slices of heads" if overview.get("slices") else None,
        f"{newest['skipped'] or 0:,} tensors skipped",
        f"{overview.get('failed') or 0:,} FAILED" if overview.get("failed") else "none failed",
        f"{overview.get('scans')} scans" if (overview.get("scans") or 0) > 1 else None,
    ]
    begun = sum(scan.parts for scan in store.unfinished() if scan.model == model)
    counted += [f"{begun:,} matrices of a scan that is not finished"] if begun else []
    lines = [elide(escaped(model), width)]
    return lines + wrapped(" · ".join(filter(None, about)), width) + wrapped(" · ".join(filter(None, counted)), width)


def _stands_out(store: Store, model: str, revision: str | None, width: int) -> list[str]:
    """Return findings as lines, from the rows of named queries."""
    from scanner.report import findings

    def asked(query: str, **params: object) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = store.query(query, model=model, revision=revision, **params).to_pylist()
        return rows

    found = [
        findings.decomposition(asked("decompose", layers=False), model),
        findings.small_end(asked("small_end", layers=False), model),
        findings.outliers(asked("outlier_share"), model),
    ]
    lines = [line for one in found if one is not None for line in _bullet(one.headline, width)]
    for place, query in (("least random", "most_learned"), ("most random", "most_random")):
        rows = asked(query, top=3)
        if rows:
            listed = ", ".join(f"{_where(row)} {number(row['p'])}" for row in rows if row["p"] is not None)
            lines += _bullet(f"{place} matrices (mean p): {listed}", width) if listed else []
    return lines[: 2 * _FINDINGS] or ["  nothing: the scan has no p-values (see rmtscan scan --values-only)"]


def _where(row: Mapping[str, Any]) -> str:
    words = [str(row["role"])]
    words += [f"({row['module']})"] if row["module"] else []
    words += [str(row["stack"])] if row["stack"] else []
    words += [f"L{row['layer']}"] if row["layer"] is not None else []
    words += [f"expert {row['expert']}"] if row["expert"] is not None else []
    return escaped(" ".join(words))


def _strip(store: Store, model: str, revision: str | None, width: int) -> list[Text]:
    """Return the heat strip: a line per role and side, a cell per decile."""
    from rich.text import Text

    rows = store.query("role_table", model=model, revision=revision).to_pylist()
    rows = [row for row in rows if row["side"] is not None]
    if not rows:
        return []
    names = [escaped(f"{row['role']} {row['module'] or ''}".strip()) for row in rows]
    narrow = width < _NARROW
    cells = 4 if narrow else 5
    room = min(max(map(cell_len, names)), max(4, width - 2 - 3 - 10 * cells - (0 if narrow else 11)))
    head = f"  {'':{room}}   " + "".join(f"{decile:>{cells}}" for decile in range(1, 11)) + "  outliers" * (not narrow)
    lines = [Text("Mean p-value by role and decile", style="bold"), Text(head)]
    last = None
    for row, name in list(zip(rows, names, strict=True))[:_STRIPS]:
        shown = elide(name if name != last else "", room)
        line = Text(f"  {shown}{' ' * (room - cell_len(shown))} {row['side']} ")
        for decile in range(1, 11):
            line.append(*_heat(row[f"d{decile}"], cells))
        below, above = row["outliers_below"], row["outliers_above"]
        if name != last and above is not None and not narrow:
            line.append(f"  {below or 0:.0f}|{above:.0f}")
        lines.append(line)
        last = name
    if len(rows) > _STRIPS:
        lines.append(Text(f"  ... {len(rows) - _STRIPS} more lines: rmtscan query role_table"))
    legend = "decile 1: smallest singular values; v: input side, u: output side; random vectors have 0.50"
    legend += "" if narrow else "; outliers: below|above the bulk, mean per matrix"
    lines += [Text(f"  {line}") for line in wrapped(legend, width - 2)]
    return lines


def _heat(p: float | None, cells: int) -> tuple[str, str]:
    """Return the cell of a mean p-value and its style: the number, black or white on the color of the scale."""
    if p is None:
        return " " * cells, ""
    color = next((color for limit, color in _COLORS if p < limit), _COLORS[-1][1])
    text = f"{p:.2f}" if cells > 4 else f"{p:.2f}".removeprefix("0")
    return f"{text:>{cells}}", f"{'white' if color in (88, 124) else 'black'} on color({color})"


def _next(store: Store, model: str, named: str, url: str) -> list[list[str]]:
    """Return commands that go on from here; `named` is how the user named the model."""
    at = [] if url == os.environ.get("RMTSCAN_STORE", DEFAULT_STORE) else ["--store", escaped(url)]
    name = escaped(named)
    commands = [
        ["query", "decompose", "-p", f"model={name}", "-p", "layers=false"],
        ["plot", "depth", "--model", name, "-o", "depth.html"],
        ["report", name, "-o", "report.html"],
    ]
    pairs = store.sql("from files.model_pairs").to_pylist()
    side = next((side for side in ("tuned", "base") if any(row[f"{side}_model"] == model for row in pairs)), None)
    if side is not None:
        commands.insert(1, ["query", "pair_shift", "-p", f"{side}={name}"])
    return [["rmtscan", *words, *at] for words in commands]


def _folded(words: Sequence[str], width: int) -> list[str]:
    """Write a command as lines, which a shell reads as one."""
    import shlex

    lines = [""]
    options = {at for at, word in enumerate(words) if at and words[at - 1].startswith("-")}
    together = [shlex.join(words[at : at + 1 + (at + 1 in options)]) for at in range(len(words)) if at not in options]
    for word in together:
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) > width - 4:  # two spaces before, " \\" after
            lines.append("  ")
        lines[-1] += word if not lines[-1].strip() else f" {word}"
    return [f"  {line}" + (" \\" if at < len(lines) - 1 else "") for at, line in enumerate(lines)]


def _bullet(text: str, width: int) -> list[str]:
    first, *rest = wrapped(text, width - 4)
    return [f"  • {first}", *(f"    {line}" for line in rest)]


def _print(lines: Sequence[Text]) -> None:
    """Print lines, with styles if stdout is a terminal that has them."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in lines:
        line.rstrip()
        console.print(line, soft_wrap=True)
    sys.stdout.flush()
