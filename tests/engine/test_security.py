"""Who can reach a local Ray: nobody from the network, no process without its token, and no other user of the machine."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scanner.engine import session

ROOT = Path(__file__).parent.parent.parent
#: A token and mode of the caller, which a local Ray must not use.
CALLER = {"RAY_AUTH_TOKEN": "a" * 64, "RAY_AUTH_MODE": "disabled"}
#: Reads the cluster's key-value table, then its nodes: what any Ray process does first. Prints what it got.
CLIENT = """
import sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
print(client.internal_kv_keys(b"", None, timeout=10), len(client.get_all_node_info(timeout=10)))
"""
#: HTTP paths that say something about a Ray, or do something.
PATHS = ("/", "/metrics", "/api/jobs/", "/api/version", "/api/v0/actors", "/api/job_agent/jobs/", "/nodes", "/logs")


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.engine.private_ray"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | CALLER | {"HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        yield json.loads(line) | {"home": home}
    finally:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


def ports(private: dict[str, Any]) -> list[tuple[str, int]]:
    return sorted({(p["name"], port) for p in private["processes"] for _, port in p["listening"]})


def as_nobody(function: Callable[[], Any]) -> Any:
    """Call a function in a process of the user `nobody`; without root, as this user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.getuid() == 0:
                other = pwd.getpwnam("nobody")
                os.setgroups([])
                os.setgid(other.pw_gid)
                os.setuid(other.pw_uid)
            with os.fdopen(writing, "wb") as out:
                pickle.dump(function(), out)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        told = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0
    return pickle.loads(told)


def answer_of(port: int, path: str, token: str | None = None) -> tuple[int, bytes]:
    """Status and body of a GET; 0 if what listens there does not speak HTTP/1."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def test_everything_listens_on_the_loopback_interface_only(private: dict[str, Any]) -> None:
    addresses = {address for process in private["processes"] for address, _ in process["listening"]}
    assert {address.removeprefix("::ffff:") for address in addresses} <= {"127.0.0.1", "::1"}
    assert len(ports(private)) >= 5
    scripts = [script for process in private["processes"] for script in process["scripts"]]
    assert not any(name in script for script in scripts for name in ("dashboard.py", "monitor.py")), "nobody uses them"


def test_the_token_is_fresh_and_in_no_file_and_no_command_line(private: dict[str, Any]) -> None:
    """The caller's token, and its wish to have none, are those of another Ray; private_ray checks that they are restored."""
    token = private["token"]
    assert len(token) == 64
    assert token != CALLER["RAY_AUTH_TOKEN"]
    assert private["mode"] == "token"
    assert list(private["home"].rglob("*auth_token*")) == []
    found = [
        path for path in Path(private["folder"]).rglob("*") if path.is_file() and token.encode() in path.read_bytes()
    ]
    assert found == []
    for process in private["processes"]:
        assert token.encode() not in Path(f"/proc/{process['pid']}/cmdline").read_bytes()


def test_no_port_says_anything_without_the_token(private: dict[str, Any]) -> None:
    """As another user where possible; there is no metrics port at all."""
    asked = [(name, port, path) for name, port in ports(private) for path in PATHS]
    answers = as_nobody(lambda: [answer_of(port, path) for _, port, path in asked])
    for (name, port, path), (status, body) in zip(asked, answers, strict=True):
        assert status in {0, 401, 403, 404, 405}, f"{name}:{port}{path}: {status} {body[:200]!r}"
        assert private["folder"].encode() not in body
    for name, port in ports(private):
        assert answer_of(port, "/metrics", private["token"])[0] != 200, f"{name}:{port} serves metrics"


@pytest.mark.parametrize("token", ["none", "wrong", "right"])
def test_a_process_without_the_token_is_refused(private: dict[str, Any], token: str, tmp_path: Path) -> None:
    given: dict[str, dict[str, str]] = {
        "none": {},
        "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        "right": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": private["token"]},
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, private["address"]],
        env=environment | {"HOME": str(tmp_path)} | given[token],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if token == "right":
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith(" 1")
    else:
        assert done.returncode != 0
        assert done.stdout == ""
        assert "nauth" in done.stderr, done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_reads_no_file_and_no_environment_and_reaches_no_socket(private: dict[str, Any]) -> None:
    folder = Path(private["folder"])
    sockets = [path for path in folder.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert len(sockets) >= 2

    def attempt(action: Callable[[], Any]) -> bool:
        try:
            action()
        except PermissionError:
            return False
        return True

    def reach(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(path))

    secrets = [Path(f"/proc/{process['pid']}/environ") for process in private["processes"]]

    def attempts() -> list[Path]:
        done = [path for path in secrets if attempt(path.read_bytes)]
        done += [path for path in (folder, folder.parent) if attempt(partial(os.listdir, path))]
        return done + [path for path in sockets if attempt(partial(reach, path))]

    assert as_nobody(attempts) == []
    assert as_nobody(os.getuid) == pwd.getpwnam("nobody").pw_uid, "the attempts were those of another user"


def test_the_folder_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Somebody else could have made it before, open to all or as a link."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    usual = tmp_path / f"rmtscan-{os.getuid()}"
    first = session._private_folder()
    assert first.parent == usual
    assert stat.S_IMODE(usual.stat().st_mode) == 0o700
    assert session._private_folder() == first
    usual.chmod(0o755)
    other = session._private_folder().parent
    assert other != usual
    assert stat.S_IMODE(other.stat().st_mode) == 0o700
    usual.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    usual.symlink_to(tmp_path / "elsewhere")
    assert session._private_folder().parent != usual


@pytest.fixture
def _reread() -> Iterator[None]:
    """Let Ray read the token again when the variables of the process are restored: the Ray of all tests has another one."""
    yield
    session._reload_token()


@pytest.mark.usefixtures("_reread")
def test_two_runs_in_one_process_have_two_tokens_and_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    tokens = []
    for _ in range(2):
        session._use_fresh_token()
        tokens.append(os.environ["RAY_AUTH_TOKEN"])
        session._forget_token()
        assert os.environ["RAY_AUTH_TOKEN"] == "b" * 64
        assert "RAY_AUTH_MODE" not in os.environ
    assert len({*tokens, "b" * 64}) == 3
