"""The packages and their allowed dependencies, as ARCHITECTURE.md states them, checked from the source."""

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
PACKAGES = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())

NUMERICS = {"rmt"}
DATA = NUMERICS | {"checkpoint", "store"}
WORK = DATA | {"engine"}
ALLOWED: dict[str, set[str]] = {
    "rmt": set(),
    "checkpoint": NUMERICS,
    "store": NUMERICS,
    "engine": DATA,
    "experiments": WORK,
    "fleet": WORK | {"experiments"},
    "figures": DATA,
    "report": DATA | {"figures"},
    "memory": WORK | {"figures", "report"},
    "callbacks": WORK | {"memory"},
    "export": DATA,
    "compress": WORK | {"experiments"},
    "site": DATA | {"figures", "report", "fleet"},
    "cli": WORK | {"experiments", "fleet", "figures", "report", "export", "compress", "site"},
}
"""Which packages a package may import, beside itself and `SHARED`."""

SHARED = {"configuration", "display", "errors", "extensions", "plain", "templates", "version"}
"""Modules at the top that every package may import, except `rmt`, which imports nothing of the project."""

HEAVY = {
    *("torch", "ray", "duckdb", "pyarrow", "numpy", "scipy", "transformers", "datasets", "sklearn", "safetensors"),
    *("altair", "vl_convert"),
}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), shown(path))


def imported(node: ast.AST, path: Path) -> Iterator[str]:
    """Yield the absolute names in an import statement; for `from module import name`, module.name."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            inside = path.relative_to(ROOT).parent.parts
            base = ".".join([*inside[: len(inside) - node.level + 1], *([base] if base else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def everywhere(path: Path) -> set[str]:
    """Return what a module imports, at the top or inside functions."""
    return {name for node in ast.walk(tree(path)) for name in imported(node, path)}


@cache
def at_the_top(path: Path) -> set[str]:
    """Return what a module imports when it is imported: not inside functions, and not for type checkers only."""

    def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            yield node
            for part in ("body", "orelse", "finalbody"):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from statements(getattr(node, part, []))

    return {name for node in statements(tree(path).body) for name in imported(node, path)}


def test_every_package_has_a_rule() -> None:
    assert set(PACKAGES) <= set(ALLOWED)
    assert {"rmt", "checkpoint", "store", "engine", "experiments", "figures", "cli"} <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_its_allowed_dependencies(package: str) -> None:
    allowed = {package, *ALLOWED[package], *(SHARED if package != "rmt" else ())}
    for path in sorted((PACKAGE / package).rglob("*.py")):
        names = [name for name in everywhere(path) if name.split(".")[0] == "scanner"]
        wrong = sorted(name for name in names if name.split(".")[1:2] and name.split(".")[1] not in allowed)
        assert not wrong, f"{shown(path)} imports {wrong}"
        assert "scanner" not in names, f"{shown(path)} imports the whole package"


@pytest.mark.parametrize("module", sorted(SHARED))
def test_shared_modules_import_only_each_other(module: str) -> None:
    names = [name for name in everywhere(PACKAGE / f"{module}.py") if name.split(".")[0] == "scanner"]
    wrong = sorted(name for name in names if name.split(".")[1] not in SHARED)
    assert not wrong, f"scanner/{module}.py imports {wrong}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_architecture_document_names_every_package(package: str) -> None:
    assert f"| `scanner/{package}/` |" in (ROOT / "ARCHITECTURE.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("ray", {"engine"}),
        ("duckdb", {"store"}),
        ("typer", {"cli"}),
        ("rich", {"cli"}),
        ("transformers", {"experiments", "callbacks"}),
        ("pytorch_lightning", {"callbacks"}),
        ("altair", {"figures"}),
        ("vl_convert", {"figures"}),
    ],
)
def test_a_library_is_imported_in_its_own_package_only(library: str, packages: set[str]) -> None:
    users = {path.relative_to(PACKAGE).parts[0] for path in MODULES if _uses(path, library)}
    assert users <= packages


def test_parquet_is_written_by_the_store_and_as_an_answer_only() -> None:
    users = {shown(path) for path in MODULES if _uses(path, "pyarrow.parquet")}
    assert {user for user in users if not user.startswith("scanner/store/")} <= {
        "scanner/cli/output.py",
        "scanner/export/answers.py",
    }


def _uses(path: Path, library: str) -> bool:
    return any(name == library or name.startswith(f"{library}.") for name in everywhere(path))


def _graph() -> dict[str, list[str]]:
    """Return the modules that each module imports at its top."""
    names = {module_name(path): path for path in MODULES}
    return {
        name: sorted({_module(other, names) for other in at_the_top(path)} & set(names)) for name, path in names.items()
    }


def test_there_are_no_import_cycles() -> None:
    graph = _graph()
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name in done:
            return
        for other in graph[name]:
            visit(other, [*trail, name])
        done.add(name)

    for name in graph:
        visit(name, [])


def _module(name: str, modules: dict[str, Path]) -> str:
    """Return the module itself, or the module that contains the imported name."""
    return name if name in modules else name.rpartition(".")[0]


def _defines_config(path: Path) -> bool:
    return any(isinstance(node, ast.ClassDef) and node.name == "Config" for node in tree(path).body)


COMMAND_LINE = sorted((PACKAGE / "cli").rglob("*.py"))
EXPERIMENTS = [path for path in sorted((PACKAGE / "experiments").rglob("*.py")) if _defines_config(path)]


@pytest.mark.parametrize("path", [*COMMAND_LINE, *EXPERIMENTS], ids=shown)
def test_what_help_needs_imports_nothing_heavy_at_the_top(path: Path) -> None:
    """Neither the module nor any module that it imports at its top, its parent packages included."""
    modules, graph = {module_name(path): path for path in MODULES}, _graph()
    waiting: list[tuple[str, ...]] = [(module_name(path),)]
    seen: set[str] = set()
    while waiting:
        trail = waiting.pop()
        if trail[-1] in seen:
            continue
        seen.add(trail[-1])
        heavy = sorted(name for name in at_the_top(modules[trail[-1]]) if name.split(".")[0] in HEAVY)
        assert not heavy, f"{' -> '.join(trail)} imports {heavy} at the top: import it inside a function"
        parents = [parent for parent in [trail[-1].rpartition(".")[0]] if parent in modules]
        waiting += [(*trail, name) for name in [*graph[trail[-1]], *parents]]


def test_jobs_only_call_the_command_line() -> None:
    for path in sorted((ROOT / "jobs").glob("*.py")):
        assert {name.split(".")[0] for name in everywhere(path)} <= {"sys", "scanner"}, shown(path)


# ---- SQL belongs in .sql files

STATEMENT = re.compile(
    r"\b(SELECT\b.*\bFROM\s+\w+|INSERT INTO|CREATE (OR REPLACE )?(TABLE|VIEW|MACRO)|DELETE FROM|UNION ALL)\b", re.S
)
RELATION = re.compile(r"from [\w.]+")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the string literals that are not docstrings."""
    parsed = tree(path)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(parsed) if isinstance(node, owners)]
    loose = {id(line.value) for body in bodies for line in body if isinstance(line, ast.Expr)}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loose:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", [path for path in MODULES if "cli" not in path.parts], ids=shown)
def test_there_is_no_sql_in_python(path: Path) -> None:
    found = [line for line, text in texts(path) if STATEMENT.search(text)]
    for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and node.args):
        given = call.args[0]
        if isinstance(call.func, ast.Attribute) and call.func.attr in {"sql", "execute"}:
            relation = isinstance(given, ast.Constant) and RELATION.fullmatch(str(given.value))
            if isinstance(given, ast.Constant | ast.JoinedStr | ast.BinOp) and not relation:
                found.append(call.lineno)
    assert not found, f"{shown(path)}, lines {sorted(set(found))}: SQL belongs in a .sql file"


# ---- documentation and tests


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_a_module_begins_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "a module begins with one sentence that says what it contains"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_tests(package: str) -> None:
    assert list((ROOT / "tests" / package).rglob("test_*.py"))
