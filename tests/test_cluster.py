"""Running on a cluster: the launcher's file is what Ray accepts, and jobs and `--address` join a Ray that is there already."""

from __future__ import annotations

import copy
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray.autoscaler._private.util import prepare_config, validate_config

from scanner import open_store
from scanner.cli.main import application
from scanner.engine.metrics import DEFINITIONS
from scanner.rmt.vocabulary import ENSEMBLES
from tests.checkpoint.writing import checkpoint
from tests.engine.checkpoints import small, weight
from tests.processes import alive, descendants, wait_until

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text("utf-8"))
BIN = Path(sys.executable).parent

# ---- cluster.yaml


@pytest.fixture
def launcher() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    return loaded


def test_the_launchers_file_is_what_the_schema_of_ray_wants(launcher: dict[str, Any]) -> None:
    jsonschema.validate(launcher, SCHEMA)


def test_the_launcher_itself_accepts_it(launcher: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(launcher))
    validate_config(prepared | {"cluster_synced_files": []})
    assert set(prepared["available_node_types"]) == set(launcher["available_node_types"])


def test_the_schema_would_notice_a_misspelt_key(launcher: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(launcher | {"max_worker": 8}, SCHEMA)


def test_the_head_has_no_cpu_for_actors_and_spot_workers_come_and_go(launcher: dict[str, Any]) -> None:
    nodes = launcher["available_node_types"]
    head = nodes.pop(launcher["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"], "the head is not taken away"
    assert nodes
    for node in nodes.values():
        assert node["min_workers"] == 0
        assert node["max_workers"] > 0
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert "ImageId" in node["node_config"], "the default image of Ray has Python 3.6"
    types = {name: node["node_config"]["InstanceType"] for name, node in nodes.items()}
    assert types == {"cpu_worker": "m7a.16xlarge", "gpu_worker": "p4d.24xlarge"}, "update docs/cluster.md, too"
    assert launcher["max_workers"] >= max(node["max_workers"] for node in nodes.values())


def test_every_node_installs_this_package_with_the_tested_versions(launcher: dict[str, Any]) -> None:
    [checkout] = [remote for remote, local in launcher["file_mounts"].items() if local == "."]
    user = launcher["auth"]["ssh_user"]
    installing = [
        command
        for part in ("setup", "head_setup", "worker_setup")
        for command in launcher[f"{part}_commands"]
        if "pip install" in command
    ]
    here = checkout.replace(f"/home/{user}", "~")
    assert any(f"{here}'[cluster,s3]'" in command for command in installing)
    assert all(f"PIP_CONSTRAINT={here}/constraints.txt" in command for command in installing)
    assert (ROOT / "constraints.txt").read_text().count("torch==2.13.0") == 1
    # Without a version, pip tries one after the other until it finds one of years ago that contradicts nothing.
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    assert {"s3fs", "aiobotocore", "boto3", "botocore"} <= pinned
    for excluded in ("**/.git", "**/.venv", "**/results"):
        assert excluded in launcher["rsync_exclude"]


def test_every_node_has_the_token_and_starts_ray_with_it(launcher: dict[str, Any]) -> None:
    user = launcher["auth"]["ssh_user"]
    assert launcher["file_mounts"][f"/home/{user}/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in launcher["setup_commands"][0]
    assert any("export RAY_AUTH_MODE=token" in command for command in launcher["setup_commands"])
    for part in ("head", "worker"):
        [start] = [command for command in launcher[f"{part}_start_ray_commands"] if "ray start" in command]
        assert "RAY_AUTH_MODE=token ~/venv/bin/ray start" in start


def test_the_commands_of_the_launcher_are_sound_shell(launcher: dict[str, Any]) -> None:
    commands = [command for name, part in launcher.items() if name.endswith("_commands") for command in part]
    assert len(commands) > 5
    for command in commands:
        assert subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False).returncode == 0, command


# ---- jobs


def test_a_job_takes_the_arguments_and_ends_with_the_status_of_the_verb() -> None:
    for arguments, status in ((["--frobnicate"], 2), (["/no/such/checkpoint", "--store", "/proc/x"], 1)):
        command = [sys.executable, str(ROOT / "jobs" / "scan.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_a_job_is_thin_and_its_verb_exists(job: Path) -> None:
    verbs = {command.name for command in application().registered_commands}
    text = job.read_text("utf-8")
    assert len(text.splitlines()) <= 20
    [verb] = re.findall(r'main\(\["([\w-]+)"(?:, "--from")?, \*sys\.argv\[1:\]\]\)', text)
    assert verb in verbs


# ---- a cluster on this machine


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A Ray that was started with `ray start`, with a temporary folder and ports of its own."""

    process: subprocess.Popen[bytes]
    port: int
    dashboard: int
    metrics: int
    environment: dict[str, str]

    def answers(self) -> bool:
        """Whether its job server does."""
        try:
            with urllib.request.urlopen(self.request("/api/version"), timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def request(self, path: str) -> urllib.request.Request:
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return urllib.request.Request(f"http://127.0.0.1:{self.dashboard}{path}", headers=token)

    def workers(self) -> list[str]:
        """State of every actor of ours that it has had."""
        with urllib.request.urlopen(self.request("/api/v0/actors?limit=1000&detail=1"), timeout=10) as answer:
            actors = json.load(answer)["data"]["result"]["result"]
        return [actor["state"] for actor in actors if actor["class_name"] == "Worker"]

    def samples(self) -> dict[tuple[str, str, str], float]:
        """Our metrics that the node exports: sums over drivers, by name, kind and stage; none before its agent has started."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        found: dict[tuple[str, str, str], float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_rmtscan"):
                    found[sample.name, sample.labels["kind"], sample.labels.get("stage", "")] += sample.value
        return found

    def without_token(self, **variables: str) -> dict[str, str]:
        """The environment of somebody who knows where the cluster is."""
        return {name: value for name, value in self.environment.items() if "AUTH" not in name} | variables

    def run(self, *command: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """A command that knows the cluster's token and nothing else of it."""
        arguments = [str(argument) for argument in command]
        return subprocess.run(
            arguments,
            env=environment or self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd="/",
        )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="rmt", dir="/tmp")  # sockets are below it, and their paths must be short
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_metrics_report_interval_ms": "500"}
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    names += ["runtime-env-agent-port", "ray-client-server-port", "metrics-export-port"]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
    command += ["--dashboard-host=127.0.0.1", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    started = Cluster(
        process=process,
        port=ports["port"],
        dashboard=ports["dashboard-port"],
        metrics=ports["metrics-export-port"],
        environment=environment,
    )
    try:
        wait_until(lambda: started.answers() or process.poll() is not None, "a cluster", seconds=90)
        assert process.poll() is None, Path(folder, "log").read_text()
        yield started
    finally:
        ours = descendants(process.pid)
        process.terminate()
        try:
            process.wait(timeout=20)
        finally:
            for pid, _ in alive(ours):
                os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def test_a_job_runs_on_the_cluster_that_it_was_submitted_to(cluster: Cluster, tmp_path: Path) -> None:
    model, store = small(tmp_path / "model", layers=1), tmp_path / "store"
    before = len(cluster.workers())
    job = [sys.executable, str(ROOT / "jobs" / "scan.py"), model, "--store", str(store), "--format", "json"]
    submit = [BIN / "ray", "job", "submit", "--address", f"http://127.0.0.1:{cluster.dashboard}", "--"]
    done = cluster.run(*submit, *map(shlex.quote, job))
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"analysed": 4' in done.stdout
    [row] = open_store(str(store)).query("scans").to_pylist()
    assert (row["matrices"], row["failed"]) == (4, 0)
    assert len(cluster.workers()) == before + 1


def test_a_scan_joins_the_cluster_at_an_address_and_leaves_it_running(cluster: Cluster, tmp_path: Path) -> None:
    model, store = small(tmp_path / "model", layers=1, seed=1), tmp_path / "store"
    before = len(cluster.workers())
    scan = [BIN / "rmtscan", "scan", model, "--store", store, "--format", "json"]
    done = cluster.run(*scan, "--address", f"127.0.0.1:{cluster.port}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["analysed"] for row in json.loads(done.stdout)] == [4]
    workers = cluster.workers()
    assert len(workers) == before + 1
    wait_until(lambda: set(cluster.workers()) == {"DEAD"}, "the end of the workers", seconds=20)
    assert cluster.process.poll() is None
    assert cluster.answers()


@contextmanager
def scraping(cluster: Cluster) -> Iterator[dict[str, float]]:
    """The largest value of each metric, as Prometheus sees them meanwhile."""
    largest: dict[str, float] = {}
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(0.3):
            for (name, _, _), value in cluster.samples().items():
                largest[name] = max(value, largest.get(name, 0.0))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield largest
    finally:
        ended.set()
        thread.join()


def test_metrics_and_logs_have_the_numbers_of_a_scan(cluster: Cluster, tmp_path: Path) -> None:
    """A whole scan, with a matrix that fails, as Prometheus and a collector of logs see it."""
    store, name = tmp_path / "store", "model.layers.{}.self_attn.q_proj.weight"
    weights = {name.format(layer): weight(500, 500, layer) for layer in range(16)}
    weights[name.format(16)] = weights[name.format(0)] * float("nan")
    model = checkpoint(tmp_path / "model", weights, {"architectures": ["LlamaForCausalLM"]})
    before = cluster.samples()
    scan = [BIN / "rmtscan", "scan", model, "--store", store, "--format", "json", "--log-format", "json"]
    with scraping(cluster) as largest:
        done = cluster.run(*scan, "--address", f"127.0.0.1:{cluster.port}")
    assert done.returncode == 3, done.stdout + done.stderr
    opened = open_store(str(store))
    [row] = opened.query("scans").to_pylist()
    controls = len(ENSEMBLES)  # of one shape

    # Logs: every line is an object, and the data is on stdout alone.
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "event"} <= event.keys() for event in events)
    named = [event["event"] for event in events]
    assert named[:2] == ["opening", "starting"]
    assert named[-1] == "summary"
    assert {"workers", "dispatching", "failed", "model_done"} <= {*named}
    [finished] = [event for event in events if event["event"] == "model_done"]
    assert (finished["analyzed"], finished["failed"], finished["scan_id"]) == (row["matrices"], 1, row["scan_id"])
    assert events[-1]["exit_status"] == 3
    assert json.loads(done.stdout)[0]["failed"] == 1

    # Metrics: the differences to what other tests have counted before.
    def counted(name: str, stage: str = "") -> float:
        key = (name, "scan", stage)
        return cluster.samples().get(key, 0.0) - before.get(key, 0.0)

    wait_until(lambda: counted("ray_rmtscan_matrices_done_total") >= 16 + controls, "the count of results", seconds=30)
    assert row["matrices"] == 16
    assert counted("ray_rmtscan_matrices_done_total") == 16 + controls
    assert counted("ray_rmtscan_matrices_failed_total") == 1
    assert counted("ray_rmtscan_bytes_read_total") == 17 * 500 * 500 * 4
    [spent] = opened.sql("SELECT sum(decompose_seconds) AS s FROM matrices")["s"].to_pylist()
    assert counted("ray_rmtscan_stage_seconds_total", "decompose") >= 0.99 * spent
    assert {*largest} == {definition.exported for definition in DEFINITIONS}
    assert largest["ray_rmtscan_workers"] == largest["ray_rmtscan_workers_wanted"] == 1
    assert 1 <= largest["ray_rmtscan_queue_length"] <= 17 + controls


def test_a_cluster_refuses_what_has_not_its_token(cluster: Cluster, tmp_path: Path) -> None:
    """The job server without a token and with a wrong one, and a scan that knows nothing but the address."""
    for path in ("/api/version", "/api/jobs/", "/api/v0/actors", "/api/prometheus/sd"):
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {'0' * 64}"}, 403)):
            request = urllib.request.Request(f"http://127.0.0.1:{cluster.dashboard}{path}", headers=headers)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert refused.value.code == status
    job = {"entrypoint": f"touch {tmp_path}/done"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster.dashboard}/api/jobs/", data=json.dumps(job).encode(), method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 401
    model = small(tmp_path / "model", layers=1, seed=3)
    scan = [BIN / "rmtscan", "scan", model, "--store", tmp_path / "store", "--address", f"127.0.0.1:{cluster.port}"]
    done = cluster.run(*scan, environment=cluster.without_token(HOME=str(tmp_path)))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "does not admit this process" in line
    assert "token" in line
    assert not (tmp_path / "done").exists()
