"""The Dockerfile: its files are in the build context, its shell is sound, and its image is the one that the manifests name."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from scanner.version import __version__
from tests.deploy.manifests import manifests, pods

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
#: Instructions and their arguments, without comments, each in one line.
STEPS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
    if line.strip()
]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def test_instructions_are_those_of_docker() -> None:
    assert {name for name, _ in STEPS} <= {"ARG", "FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert STEPS[0][0] == "ARG"
    assert len(arguments("FROM")) == 2


@pytest.mark.parametrize("command", arguments("RUN"))
def test_commands_are_sound_shell(command: str) -> None:
    assert subprocess.run(["sh", "-n", "-c", command], capture_output=True, check=False).returncode == 0


def test_copied_files_exist_and_are_in_the_build_context() -> None:
    patterns = (ROOT / ".dockerignore").read_text("utf-8").split("\n")
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert "*" in patterns
    copied = [source for rest in arguments("COPY") if "--from" not in rest for source in shlex.split(rest)[:-1]]
    assert {*copied} == kept
    assert all((ROOT / source).exists() for source in copied)


def test_what_the_package_needs_to_be_built_is_copied() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    needed = re.findall(r'^(?:readme|path) = "([^"]+)"', project, re.M)
    needed += re.findall(r'^license-files = \["([^"]+)"\]', project, re.M)
    needed += re.findall(r'^"(\w+)" = "scanner/', project, re.M)
    assert len(needed) == 4
    copied = {name for rest in arguments("COPY") for name in shlex.split(rest)[:-1]}
    assert {name.split("/")[0] for name in needed} <= copied


def test_every_package_is_installed_with_the_tested_versions() -> None:
    assert any("PIP_CONSTRAINT=/src/constraints.txt" in rest for rest in arguments("ENV"))
    installs = [command for command in arguments("RUN") if "pip install" in command]
    assert len(installs) == 2
    assert 'pip install --index-url "$TORCH_INDEX" torch' in installs[0], (
        "torch comes first, from the index of its variant"
    )
    assert "/src[cluster,quant,s3]" in installs[1]
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text("utf-8"), re.M)


def test_the_image_runs_without_root_and_is_the_one_of_the_manifests() -> None:
    assert arguments("USER") == ["1000:1000"]
    tags = set(re.findall(r"-t (\S+)", TEXT))
    used = {c["image"] for m in manifests().values() for t in pods(m) for c in t["spec"]["containers"]}
    assert used == tags == {f"rmtscan:{__version__}", f"rmtscan:{__version__}-cuda"}
