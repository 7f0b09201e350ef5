"""The documents name files, modules, commands and options that exist, and the generated ones are current."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from scanner.cli.main import application
from scanner.version import __version__

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"])
VERBS = typer.main.get_command(application()).commands  # type: ignore[attr-defined]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_generated_documents_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.stale() == [], "run `make docs`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_links_lead_to_files(document: Path) -> None:
    text = document.read_text("utf-8")
    links = [*re.findall(r"\]\(([^)#\s]+)", text), *re.findall(r'src="([^"]+)"', text)]
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_files_that_a_developer_is_sent_to_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    named = re.findall(r"`((?:scanner|tests|queries|docs|benchmarks|jobs)/[\w./]*)`", text)
    assert len(named) >= 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_site_of_the_documentation_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    """`--strict` makes a broken link, a missing anchor, and a page that no menu has into errors."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = [*tmp_path.rglob("*.html")]
    assert len(pages) >= 25
    loaded = re.compile(r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]+)"|<link[^>]*\bhref="([^"]+)"')
    for page in pages:
        links = [src or href for src, href in loaded.findall(page.read_text("utf-8"))]
        assert [link for link in links if "//" in link.partition("?")[0]] == [], page.name
    assert 'id="scanner.memory.analyze_model"' in (tmp_path / "api.html").read_text("utf-8")


def test_what_additions_are_declared_with_exists() -> None:
    names = re.findall(r"`(scanner(?:\.\w+)+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(names) >= 5
    for name in sorted({*names}):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


WITH_COMMANDS = ["docs/findings.md", "docs/running-times.md", "docs/method.md", "docs/compress.md", "docs/start.md"]


@pytest.mark.parametrize("name", [*WITH_COMMANDS, *(shown(path) for path in (ROOT / "docs" / "guides").glob("*.md"))])
def test_documents_use_only_verbs_and_options_that_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
    for verb, rest in re.findall(r"(?:`|&& |^ +(?:\$ )?)rmtscan ([a-z-]+)([^\n`|#&>]*)", text, re.M):
        assert verb in VERBS, f"{name}: rmtscan {verb}"
        known = {option for parameter in VERBS[verb].params for option in parameter.opts}
        used = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", re.sub(r'"[^"]*"', "", rest)))
        assert used <= known, f"{name}: rmtscan {verb}{rest}"


def test_the_changelog_and_the_citation_have_the_version_of_the_package() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_makefile_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        used = {
            word
            for line in [*re.findall(r"`make ([a-z -]+)`", text), *re.findall(r"^ +make ([a-z-]+)", text, re.M)]
            for word in line.split()
        }
        assert used <= targets, shown(document)
