"""A scan as a run of Weights & Biases or MLflow: what is logged, under names that nothing acts on, and what is said if it fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scanner.errors import ScannerError
from scanner.export import tracking
from scanner.store import Store, open_store
from tests.cli.conftest import Run, rmtscan  # noqa: F401 (a fixture)
from tests.store.rows import Matrix, add_scan

HOSTILE = "../../=cmd()\x1b[31m\u202e\nred" + "x" * 10_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"), create=True)
    rows = [Matrix(tensor=f"h.{i}", layer=i, role="query", u_p=(0.1 * (i + 1),) * 4) for i in range(3)]
    add_scan(made, "a", [*rows, Matrix(tensor="o", role=HOSTILE)], model="org/model", failed=["broken"])
    add_scan(made, "b", [Matrix()], model=HOSTILE)
    return made


def test_the_summary_has_the_numbers_of_the_rows(store: Store) -> None:
    found = tracking.summary(store, "org/model")
    assert (found["matrices"], found["failed"]) == (4, 1)
    statement = (
        "select avg(u_p_mean) p, avg(outliers_right) n from matrices where role = 'query' and model = 'org/model'"
    )
    [row] = store.sql(statement).to_pylist()
    assert (found["query/u_p"], found["query/above"]) == (pytest.approx(row["p"]), pytest.approx(row["n"]))
    assert all(name.isascii() and name.isprintable() and len(name) < 250 and ".." not in name[:2] for name in found)


def test_the_folder_has_the_answers_and_the_card(store: Store, tmp_path: Path) -> None:
    tracking.write_tables(store, "org/model", tmp_path)
    assert {path.name for path in tmp_path.glob("*.*")} == {
        "card.md",
        *(f"{name}.parquet" for name in tracking.QUERIES),
    }
    for name in tracking.QUERIES:
        assert pq.read_table(tmp_path / f"{name}.parquet").equals(store.query(name, model="org/model"))


@pytest.mark.parametrize("name", [HOSTILE, "..", "", "/", "-rf", "a/b", "\x00"])
def test_names_are_no_paths_and_no_escapes(name: str) -> None:
    made = tracking.safe(name)
    assert 0 < len(made) <= 100
    assert made.isascii()
    assert made.isprintable()
    assert not {*"/\\=()\x1b"} & {*made}
    assert made[0] not in "-."


@pytest.mark.parametrize("client", ["wandb", "mlflow"])
def test_without_the_client_one_line_names_the_extra(
    rmtscan: Run,  # noqa: F811
    store: Store,
    client: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = [f"error: the client {client} is not installed: run `pip install 'rmtscan[{client}]'`"]
    monkeypatch.setitem(sys.modules, client, None)
    assert rmtscan("export", client, "org/model", "--store", store.url).errors == told
    assert rmtscan("export", client, "unknown", "--store", store.url).errors == told, "before the store is read"
    # A folder of runs in the working directory is a package for Python, and not the client.
    monkeypatch.delitem(sys.modules, client)
    (tmp_path / client).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert rmtscan("export", client, "org/model", "--store", store.url).errors == told
    sys.modules.pop(client, None)


@pytest.mark.parametrize("kind", ["folder", "database"])
def test_mlflow_gives_back_what_was_logged(rmtscan: Run, store: Store, tmp_path: Path, kind: str) -> None:  # noqa: F811
    mlflow = pytest.importorskip("mlflow", reason="the client of MLflow is not installed (extra mlflow)")
    uri = f"file:{tmp_path}/runs" if kind == "folder" else f"sqlite:///{tmp_path}/runs.db"
    if kind == "database":
        pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed (extra mlflow)")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # where MLflow keeps the artifacts of a database
        for model in ("org/model", HOSTILE):
            told = rmtscan("export", "mlflow", model, "--store", store.url, "--uri", uri)
            assert (told.status, told.out) == (0, b"")
            assert told.err.isascii()
        assert not {name for name in os.environ if name.startswith("MLFLOW_")}, "settings end with the export"
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = mlflow.MlflowClient(tracking_uri=uri)
        number = client.get_experiment_by_name("rmtscan").experiment_id
        runs = {run.info.run_name: run for run in client.search_runs([number])}
        assert {*runs} == {"org-model", tracking.safe(HOSTILE)}
        run = runs["org-model"]
        assert run.info.status == "FINISHED"
        assert run.data.metrics == pytest.approx(tracking.summary(store, "org/model"))
        names = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert names == {"card.md", "report.html", *(f"{name}.parquet" for name in tracking.QUERIES)}
        kept = Path(client.download_artifacts(run.info.run_id, "scans.parquet", str(tmp_path)))
        assert pq.read_table(kept).equals(store.query("scans", model="org/model"))


def test_a_run_of_mlflow_that_could_not_be_logged_is_not_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the client of MLflow is not installed (extra mlflow)")
    uri = f"file:{tmp_path}/runs"
    with pytest.raises(ScannerError, match="MLflow did not take the run: Invalid value"):
        tracking.log_to_mlflow(tmp_path, {"no name?": 1.0}, "m", uri=uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=uri)
    [run] = client.search_runs([client.get_experiment_by_name("rmtscan").experiment_id])
    assert run.info.status == "FAILED"


def test_an_unreachable_server_of_mlflow_is_one_line(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the client of MLflow is not installed (extra mlflow)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(ScannerError, match="MLflow did not take the run: API request to http") as raised:
            tracking.log_to_mlflow(tmp_path, {}, "m", uri="http://127.0.0.1:9")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_an_offline_run_of_wandb_has_the_files_and_the_summary(rmtscan: Run, store: Store, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("wandb", reason="the client of Weights & Biases is not installed (extra wandb)")
    told = rmtscan("export", "wandb", "org/model", "--store", store.url, "--offline", tmp_path / "runs")
    assert (told.status, told.out, len(told.err.splitlines())) == (0, b"", 1)
    staged = {path.read_bytes() for path in (tmp_path / "runs").glob("wandb/artifacts/staging/*")}
    assert len(staged) == len(tracking.QUERIES) + 2
    tracking.write_tables(store, "org/model", tmp_path)
    assert (tmp_path / "card.md").read_bytes() in staged
    [log] = (tmp_path / "runs").glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"query/u_p" in content
    assert str(tracking.summary(store, "org/model")["query/u_p"]).encode() in content
    assert b"requirements.txt" not in content
    assert not [path for path in log.parent.glob("files/**/*") if path.is_file()], "nothing about this machine is in it"


def test_a_run_of_wandb_that_is_open_stays_open(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="the client of Weights & Biases is not installed (extra wandb)")
    (tmp_path / "files").mkdir()
    with wandb.init(project="own", dir=tmp_path, mode="offline") as own:
        logged = tracking.log_to_wandb(tmp_path / "files", {"a": 1.0}, "m", offline=tmp_path / "runs")
        assert Path(logged).is_relative_to(tmp_path / "runs")
        own.log({"still": 1})
        assert "a" not in dict(own.summary)


def test_a_folder_of_wandb_that_is_a_file_is_one_line(rmtscan: Run, store: Store, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("wandb", reason="the client of Weights & Biases is not installed (extra wandb)")
    (tmp_path / "file").write_text("")
    told = rmtscan("export", "wandb", "org/model", "--store", store.url, "--offline", tmp_path / "file")
    assert (told.status, told.errors) == (1, [f"error: --offline '{tmp_path}/file' is no folder: File exists"])


@pytest.mark.parametrize("terminal", [False, True])
def test_nobody_logged_in_to_wandb_is_one_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    pytest.importorskip("wandb", reason="the client of Weights & Biases is not installed (extra wandb)")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    if terminal:  # where wandb would ask for an account
        for stream in (sys.stdin, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
    with pytest.raises(
        ScannerError, match=r"Weights & Biases did not take the run: .*(?i:api.key).*; log in with `wandb login`"
    ):
        tracking.log_to_wandb(tmp_path, {}, "m")
