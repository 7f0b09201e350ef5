"""Help and README say what there is, and asking for help costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from scanner.cli.main import application
from scanner.version import __version__

from .conftest import Run

ROOT = Path(__file__).parent.parent.parent
VERBS = typer.main.get_command(application()).commands  # type: ignore[attr-defined]
HEAVY = (
    *("torch", "ray", "duckdb", "pyarrow", "numpy", "scipy", "transformers", "huggingface_hub", "fsspec", "gguf"),
    *("altair", "vl_convert"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_describes_itself(rmtscan: Run, verb: str) -> None:
    told = rmtscan(verb, "--help")
    text = told.out.decode()
    assert (told.status, told.err) == (0, "")
    assert f"rmtscan {verb}" in text
    assert len(VERBS[verb].help.split()) >= 4
    assert VERBS[verb].get_short_help_str(), verb


@pytest.mark.parametrize("verb", VERBS)
def test_the_terminal_breaks_the_lines_of_a_help(verb: str) -> None:
    for paragraph in VERBS[verb].help.split("\n\n"):
        assert paragraph.startswith(" ") or "\n" not in paragraph, paragraph


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_and_argument_is_documented(verb: str) -> None:
    parameters = [param for param in VERBS[verb].params if param.name != "help"]
    undocumented = [param.name for param in parameters if not getattr(param, "help", None)]
    assert undocumented == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_default_that_is_explained_stands_at_the_end(verb: str) -> None:
    for parameter in VERBS[verb].params:
        assert "None:" not in (getattr(parameter, "help", None) or ""), parameter.name


def test_the_command_itself_tells_its_verbs_and_its_exit_statuses(rmtscan: Run) -> None:
    told = rmtscan("--help")
    text = " ".join(told.out.decode().split())
    assert told.status == 0
    assert all(verb in text for verb in VERBS)
    for status in ("0 done", "1 an error", "2 wrong usage", "3 done but", "130 interrupted"):
        assert status in text


def test_no_arguments_show_the_help_as_wrong_usage(rmtscan: Run) -> None:
    told = rmtscan()
    assert told.status == 2
    assert "Usage" in told.out.decode() + told.err


def test_the_version_is_printed(rmtscan: Run) -> None:
    assert rmtscan("--version").out.decode() == f"rmtscan {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_the_readme_names_every_verb(verb: str) -> None:
    assert re.search(rf"\brmtscan {verb}\b", (ROOT / "README.md").read_text("utf-8"))


@pytest.mark.parametrize("document", ["README.md", "Makefile", "cluster.yaml"])
def test_documents_use_only_verbs_and_options_that_there_are(document: str) -> None:
    text = (ROOT / document).read_text("utf-8").replace("\\\n", " ")
    used = re.findall(r"\brmtscan ([a-z]+)((?: [^\n`|#&>]*)?)", text)
    commands = [(verb, rest) for verb, rest in used if verb in VERBS]
    commands += [("scan", rest) for rest in re.findall(r"jobs/scan\.py([^\n`|#&>]*)", text)]
    for verb, rest in commands:
        known = {name for param in VERBS[verb].params for name in param.opts} | {*getattr(VERBS[verb], "aliases", ())}
        asked = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", re.sub(r'"[^"]*"', "", rest)))
        assert asked <= known | {"--help"}, f"{document}: rmtscan {verb}{rest}"


@pytest.mark.parametrize("arguments", [["--help"], ["scan", "--help"], ["query", "--help"], ["--version"], ["scam"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from scanner.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"sys.stderr.write('LOADED ' + ' '.join(sorted(set({HEAVY!r}) & set(sys.modules))) + '\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "LOADED "


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"import sys, scanner; dir(scanner); print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
