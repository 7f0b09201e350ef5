"""The callbacks in real trainers: their loggers get the values, and the store has the rows of every measured step."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import scanner.callbacks
from scanner import CheckpointError, ScannerError, analyze_model, open_store
from scanner.callbacks import LightningCallback, TransformersCallback
from tests.memory.models import tiny

OPTIONS: dict[str, Any] = {"name": "run", "every": 2, "budget": None, "roles": ("query", "mlp_up")}
METRIC = "rmt/query/stable_rank"


class Texts(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random tokens, which are their own labels."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(0, 96, (16,), generator=generator)
        return {"input_ids": tokens, "labels": tokens}


def steps(folder: Path) -> list[tuple[str, str]]:
    found = open_store(str(folder)).sql("SELECT model, revision FROM scans ORDER BY finished_at")
    return [(row["model"], row["revision"]) for row in found.to_pylist()]


# ---- transformers


def recorder() -> Any:
    import transformers

    class Recorder(transformers.TrainerCallback):
        """What reporters such as those of W&B and TensorBoard get."""

        def __init__(self) -> None:
            self.logs: list[tuple[int, dict[str, Any]]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.logs.append((state.global_step, dict(logs)))

    return Recorder()


def trainer(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    import transformers

    settings = {
        "max_steps": 6,
        "logging_steps": 3,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "use_cpu": True,
    }
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "out"), save_strategy="no", disable_tqdm=True, learning_rate=0.01, **settings | options
    )
    return transformers.Trainer(model=tiny("llama"), args=arguments, train_dataset=Texts(), callbacks=callbacks)


def test_transformers_logs_through_its_trainer(tmp_path: Path) -> None:
    early = recorder()
    training = trainer(tmp_path, [early])
    TransformersCallback(store=tmp_path / "store", **OPTIONS).attach(training)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*attach")
        training.train()
    seen = {step: logs for step, logs in early.logs if METRIC in logs}
    assert sorted(seen) == [2, 4, 6]
    assert [entry["step"] for entry in training.state.log_history if METRIC in entry] == [2, 4, 6]
    # The trainer's own values come at their own steps, also where both fall together.
    assert [step for step, logs in early.logs if "loss" in logs] == [3, 6]
    assert steps(tmp_path / "store") == [("run", "step-2"), ("run", "step-4"), ("run", "step-6")]
    last = analyze_model(training.model, roles="query").matrices["stable_rank"].to_pylist()
    assert seen[6][METRIC] == pytest.approx(sum(last) / len(last), rel=1e-12)
    assert len({logs[METRIC] for logs in seen.values()}) == 3
    trend = open_store(str(tmp_path / "store")).query("checkpoint_roles", model="run", role="query", by_step=True)
    assert trend["step"].to_pylist() == [2, 4, 6]
    assert trend["stable_rank"].to_pylist() == [seen[step][METRIC] for step in (2, 4, 6)]


def test_transformers_without_its_trainer_adds_to_the_next_log_and_warns(tmp_path: Path) -> None:
    early, late = recorder(), recorder()
    training = trainer(tmp_path, [early, TransformersCallback(**OPTIONS), late])
    with pytest.warns(UserWarning, match=r"call attach\(trainer\)"):
        training.train()
    assert [step for step, logs in late.logs if METRIC in logs] == [2, 4, 6]
    assert not any(METRIC in logs for _, logs in early.logs)
    assert [entry["step"] for entry in training.state.log_history if METRIC in entry] == [2, 4, 6]


def test_transformers_refuses_a_model_without_matrices_before_training(tmp_path: Path) -> None:
    training = trainer(tmp_path, [])
    TransformersCallback(layers=9).attach(training)
    with pytest.raises(CheckpointError, match="not selected: layer"):
        training.train()
    assert training.state.global_step == 0


# ---- Lightning


def lightning(folder: Path, callbacks: list[Any]) -> tuple[Any, Any]:
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import CSVLogger

    class Wrapped(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny("gpt2")

        def training_step(self, batch: Any, index: int) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.5)

    logger = CSVLogger(str(folder), name="", version="log", flush_logs_every_n_steps=1)
    training = pl.Trainer(
        max_steps=6,
        logger=logger,
        callbacks=callbacks,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    return training, Wrapped()


@pytest.mark.filterwarnings("ignore")
def test_lightning_logs_through_its_loggers(tmp_path: Path) -> None:
    training, module = lightning(tmp_path, [LightningCallback(store=tmp_path / "store", **OPTIONS)])
    training.fit(module, torch.utils.data.DataLoader(Texts(), batch_size=4))
    lines = (tmp_path / "log" / "metrics.csv").read_text("utf-8").splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    assert [int(row["step"]) for row in rows if row[METRIC]] == [2, 4, 6]
    assert steps(tmp_path / "store") == [("run", "step-2"), ("run", "step-4"), ("run", "step-6")]
    # Fused weights are split by the config of the model inside, as in a scan of it.
    values = analyze_model(module.model, roles="query").matrices["stable_rank"].to_pylist()
    assert float(training.callback_metrics[METRIC]) == pytest.approx(sum(values) / len(values), rel=1e-6)
    assert float(rows[-1][METRIC]) == pytest.approx(sum(values) / len(values), rel=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_lightning_refuses_a_model_without_matrices_before_training(tmp_path: Path) -> None:
    training, module = lightning(tmp_path, [LightningCallback(roles="router")])
    with pytest.raises(CheckpointError, match="not selected: role"):
        training.fit(module, torch.utils.data.DataLoader(Texts(), batch_size=4))


# ---- without them


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("TransformersCallback", ["transformers"], "experiments"),
        ("LightningCallback", ["pytorch_lightning", "lightning"], "lightning"),
    ],
)
def test_a_missing_library_is_one_line(
    name: str, missing: list[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [*sys.modules]:
        if loaded.split(".")[0] in missing:
            monkeypatch.delitem(sys.modules, loaded)
    for library in missing:
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.setitem(sys.modules, f"{library}.pytorch", None)
    for module in ("transformers", "lightning"):
        monkeypatch.delitem(sys.modules, f"scanner.callbacks.{module}", raising=False)
    with pytest.raises(ScannerError, match=rf"{name} needs .* pip install 'rmtscan\[{extra}\]'") as raised:
        getattr(scanner.callbacks, name)
    assert "\n" not in str(raised.value)


def test_importing_the_package_imports_no_trainer() -> None:
    code = "import sys, scanner.callbacks; print([n for n in ('transformers', 'pytorch_lightning', 'torch') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
