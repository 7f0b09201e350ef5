"""A scan as a run of an experiment tracker (Weights & Biases, MLflow): report, tables and card as artifact, numbers as metrics.

Names come from a checkpoint: those of metrics and artifacts keep letters, digits, `.`, `_` and `-` alone.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from scanner.checkpoint.names import printable
from scanner.errors import ConfigError, ScannerError
from scanner.export.answers import answer_file
from scanner.export.card import model_card
from scanner.export.matrices import SQL
from scanner.export.writing import write
from scanner.store import Store

QUERIES = ("scans", "role_table", "layer_trend", "outliers", "decompose", "metrics_by_role")
"""The named queries whose answers are in the artifact, as NAME.parquet."""
_MOST, _MOST_TOLD = 100, 160
"""Characters of a name, below the limits of both trackers, and of what a client said."""


def client(name: str) -> ModuleType:
    """Return the client of a tracker: `wandb` or `mlflow`.

    Raises:
        ScannerError: it is not installed.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise _missing(name) from error
    if module.__file__ is None:  # a folder of runs in the working directory, which Python takes for a package
        raise _missing(name)
    return module


def _missing(name: str) -> ScannerError:
    return ScannerError(f"the client {name} is not installed: run `pip install 'rmtscan[{name}]'`")


def write_tables(store: Store, model: str, folder: Path) -> None:
    """Write the model card and the answers of `QUERIES` into a folder, which exists.

    Raises:
        ScannerError: the model has no rows, or a file cannot be written.
    """
    write(folder / "card.md", model_card(store, model))
    for name in QUERIES:
        write(folder / f"{name}.parquet", answer_file(store.query(name, model=model), ".parquet"))


def summary(store: Store, model: str) -> dict[str, float]:
    """Return the metrics of a run: counts, and the means of the p-values by role (0.5 for random vectors), where they are known.

    The keys are `matrices`, `failed`, `skipped`, and for every role `ROLE/below`, `ROLE/above` (singular values outside the
    Marchenko-Pastur bulk, per matrix), `ROLE/u_p`, `ROLE/v_p`, `ROLE/u_p_scale` and `ROLE/v_p_scale`.
    """
    [scan, *_] = store.query("scans", model=model).to_pylist()
    found = {name: scan[name] for name in ("matrices", "failed", "skipped")}
    for row in store.sql((SQL / "card.sql").read_text("utf-8"), {"model": model}).to_pylist():
        role = safe(row["role"])
        counts = {name: row[name] for name in ("below", "above")}
        found |= {f"{role}/{name}": None if n is None else n / row["matrices"] for name, n in counts.items()}
        found |= {f"{role}/{name}": row[name] for name in ("u_p", "v_p", "u_p_scale", "v_p_scale")}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def log_to_wandb(
    folder: Path,
    metrics: dict[str, float],
    model: str,
    *,
    project: str = "rmtscan",
    entity: str | None = None,
    offline: Path | None = None,
) -> str:
    """Log the files of a folder and metrics as a run of Weights & Biases, and return where it is.

    Args:
        folder: what becomes the artifact.
        metrics: the summary of the run.
        model: name of the run and of the artifact.
        project: project of the run.
        entity: user or team; None: the default of the account.
        offline: a folder for an offline run, which `wandb sync` uploads; None: the server that is configured.

    Raises:
        ConfigError: `offline` cannot be a folder.
        ScannerError: wandb is not installed, nobody is logged in, or the server does not answer.
    """
    wandb = client("wandb")
    # Nothing about this machine is sent: its programs, repositories and load.
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        init_timeout=30.0,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        reinit="create_new",  # beside a run of the same process, which stays open
    )
    where = {} if offline is None else {"dir": str(offline), "mode": "offline"}
    # An offline run has its files beside it, where wandb would use a folder of the user.
    beside = {} if offline is None else {"WANDB_DATA_DIR": str(offline.absolute() / "wandb")}
    if offline is not None:
        _folder(offline)
    try:
        with _environment(**beside):
            wandb.setup(settings=settings)  # silent from here on: it would ask a terminal for an account
            run = wandb.init(
                project=project, entity=entity, name=safe(model), job_type="rmtscan", settings=settings, **where
            )
            with run:
                run.summary.update(metrics)
                artifact = wandb.Artifact(safe(model), type="rmtscan", metadata={"model": printable(model)})
                for file in sorted(folder.iterdir()):
                    artifact.add_file(str(file), name=file.name)
                run.log_artifact(artifact)
                return str(Path(run.dir).parent if run.offline else run.url)
    except (wandb.Error, ValueError, OSError) as error:
        remedy = "log in with `wandb login`, or write a run into a folder with `offline`"
        raise _refused("Weights & Biases", error, remedy) from error


def _folder(path: Path) -> None:
    """Create the folder of an offline run: wandb would take another one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("offline", f"{printable(str(path))!r} is no folder: {error.strerror or error}") from error


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables that a client reads, as long as it is used."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def log_to_mlflow(
    folder: Path, metrics: dict[str, float], model: str, *, experiment: str = "rmtscan", uri: str | None = None
) -> str:
    """Log the files of a folder and metrics as a run of MLflow, and return where it is.

    Args:
        folder: what becomes the artifacts.
        metrics: the metrics of the run.
        model: name of the run.
        experiment: name of the experiment, which is created if there is none.
        uri: the tracking server, a database (`sqlite:///runs.db`) or a folder (`file:./mlruns`); None: what is configured.

    Raises:
        ScannerError: MLflow is not installed, or the server does not answer or refuses the run.
    """
    retries, asked = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_ALLOW_FILE_STORE"
    settings = {retries: os.environ.get(retries, "2")}  # the default waits for minutes
    if uri is not None and ("://" not in uri or uri.startswith("file:")):
        settings[asked] = os.environ.get(asked, "true")  # MLflow asks whether a folder is meant, and it is
    with _environment(**settings):
        mlflow = client("mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        try:
            tracker = mlflow.MlflowClient(tracking_uri=uri)
            known = tracker.get_experiment_by_name(experiment)
            number = tracker.create_experiment(experiment) if known is None else known.experiment_id
            run = tracker.create_run(number, run_name=safe(model), tags={"rmtscan.model": printable(model)})
            state = "FAILED"
            try:
                for name, value in metrics.items():
                    tracker.log_metric(run.info.run_id, name, value)
                tracker.log_artifacts(run.info.run_id, str(folder))
                state = "FINISHED"
            finally:  # a run that was begun is no longer running, also after Ctrl-C
                tracker.set_terminated(run.info.run_id, state)
        except (mlflow.exceptions.MlflowException, ImportError, OSError) as error:
            raise _refused("MLflow", error, "see `uri` and MLFLOW_TRACKING_URI") from error
    return f"experiment {experiment}, run {run.info.run_id}"


def _refused(tool: str, error: Exception, remedy: str) -> ScannerError:
    told = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
    told = f"{told[:_MOST_TOLD]}..." if len(told) > _MOST_TOLD else told
    return ScannerError(f"{tool} did not take the run: {printable(told)}; {remedy}")


def safe(name: Any) -> str:
    """Return a name that both trackers accept, and that is no path."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", str(name)).strip("-.")
    if len(kept) > _MOST:
        kept = f"{kept[: _MOST // 2]}...{kept[-_MOST // 2 + 3 :]}"
    return kept or "model"
