"""The rooms of the package and the arrows between them, read from the source: what ARCHITECTURE.md says holds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "scanner"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())

NUMERICS = {"rmt"}
READING_AND_WRITING = NUMERICS | {"checkpoint", "store"}
WORK = READING_AND_WRITING | {"engine"}
ARROWS: dict[str, set[str]] = {
    "rmt": set(),
    "checkpoint": NUMERICS,
    "store": NUMERICS,
    "engine": READING_AND_WRITING,
    "experiments": WORK,
    "figures": READING_AND_WRITING,
    "cli": WORK | {"experiments", "figures"},
}
"""What a room may import beside itself, errors, version, configuration and extensions; `rmt` not even these."""

MAX_LINES = 450
HEAVY = {"torch", "ray", "duckdb", "pyarrow", "numpy", "scipy", "transformers", "altair", "vl_convert"}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), shown(path))


def imported(node: ast.AST, path: Path) -> Iterator[str]:
    """What an import statement names, absolute: modules, and for `from module import name` module.name."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            inside = path.relative_to(ROOT).parent.parts
            base = ".".join([*inside[: len(inside) - node.level + 1], *([base] if base else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def everywhere(path: Path) -> set[str]:
    """What a module imports, wherever the statement stands."""
    return {name for node in ast.walk(tree(path)) for name in imported(node, path)}


def at_the_top(path: Path) -> set[str]:
    """What a module imports when it is imported itself: not within functions, and not for type checkers alone."""

    def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            yield node
            for part in ("body", "orelse", "finalbody"):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from statements(getattr(node, part, []))

    return {name for node in statements(tree(path).body) for name in imported(node, path)}


def test_every_room_is_in_the_plan() -> None:
    assert set(ROOMS) <= set(ARROWS)
    assert {"rmt", "checkpoint", "store", "engine", "cli"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms_run_one_way(room: str) -> None:
    shared = set() if room == "rmt" else {"errors", "version", "configuration", "extensions"}
    allowed = {room, *ARROWS[room], *shared}
    for path in sorted((PACKAGE / room).rglob("*.py")):
        names = [name for name in everywhere(path) if name.split(".")[0] == "scanner"]
        wrong = sorted(name for name in names if name.split(".")[1:2] and name.split(".")[1] not in allowed)
        assert not wrong, f"{shown(path)} imports {wrong}"
        assert "scanner" not in names, f"{shown(path)} imports the whole package"


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("ray", {"engine"}),
        ("duckdb", {"store"}),
        ("typer", {"cli"}),
        ("rich", {"cli"}),
        ("transformers", {"experiments"}),
        ("altair", {"figures"}),
        ("vl_convert", {"figures"}),
    ],
)
def test_a_library_is_imported_in_its_own_room_only(library: str, rooms: set[str]) -> None:
    users = {path.relative_to(PACKAGE).parts[0] for path in MODULES if _uses(path, library)}
    assert users <= rooms


def test_parquet_is_written_by_the_store_and_to_stdout_only() -> None:
    users = {shown(path) for path in MODULES if _uses(path, "pyarrow.parquet")}
    assert {user for user in users if not user.startswith("scanner/store/")} <= {"scanner/cli/output.py"}


def _uses(path: Path, library: str) -> bool:
    return any(name == library or name.startswith(f"{library}.") for name in everywhere(path))


def test_there_are_no_import_circles() -> None:
    names = {module_name(path): path for path in MODULES}
    graph = {
        name: sorted({_module(other, names) for other in at_the_top(path)} & set(names)) for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, f"a circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name in done:
            return
        for other in graph[name]:
            visit(other, [*trail, name])
        done.add(name)

    for name in graph:
        visit(name, [])


def _module(name: str, modules: dict[str, Path]) -> str:
    """The module itself, or the one that the imported name stands in."""
    return name if name in modules else name.rpartition(".")[0]


def test_command_line_modules_import_nothing_heavy_at_the_top() -> None:
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        heavy = {name for name in at_the_top(path) if name.split(".")[0] in HEAVY}
        assert not heavy, f"{shown(path)} imports {sorted(heavy)} before anybody has asked for it"


def test_jobs_only_call_the_command_line() -> None:
    for path in sorted((ROOT / "jobs").glob("*.py")):
        assert {name.split(".")[0] for name in everywhere(path)} <= {"sys", "scanner"}, shown(path)


# ---- SQL stands in .sql files

STATEMENT = re.compile(
    r"\b(SELECT\b.*\bFROM\s+\w+|INSERT INTO|CREATE (OR REPLACE )?(TABLE|VIEW|MACRO)|DELETE FROM|UNION ALL)\b", re.S
)
RELATION = re.compile(r"from [\w.]+")


def texts(path: Path) -> Iterator[ast.Constant]:
    """String literals that are neither docstrings nor the words of the command line."""
    parsed = tree(path)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(parsed) if isinstance(node, owners)]
    loose = {id(line.value) for body in bodies for line in body if isinstance(line, ast.Expr)}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loose:
            yield node


@pytest.mark.parametrize("path", [path for path in MODULES if "cli" not in path.parts], ids=shown)
def test_no_sql_stands_in_python(path: Path) -> None:
    found = [node.lineno for node in texts(path) if STATEMENT.search(node.value)]
    for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and node.args):
        given = call.args[0]
        if isinstance(call.func, ast.Attribute) and call.func.attr in {"sql", "execute"}:
            relation = isinstance(given, ast.Constant) and RELATION.fullmatch(str(given.value))
            if isinstance(given, ast.Constant | ast.JoinedStr | ast.BinOp) and not relation:
                found.append(call.lineno)
    assert not found, f"{shown(path)}, lines {sorted(set(found))}: SQL belongs into a .sql file"


# ---- size


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_a_module_is_a_room_with_one_purpose(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES, "look for the second purpose in it"
    assert ast.get_docstring(tree(path)), "a module begins with a sentence that says what lives in it"


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / "tests" / room).exists() or room in ARROWS])
def test_every_room_has_tests(room: str) -> None:
    assert list((ROOT / "tests" / room).glob("test_*.py"))
