"""`analyze_model`: every matrix of a model in memory, with the rows that a scan of the saved model has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scanner.checkpoint import Checkpoint
from scanner.checkpoint.memory import identity_of, opened_model
from scanner.engine import Method
from scanner.engine.inline import check_device, run_inline
from scanner.engine.options import PoolOptions
from scanner.engine.run import run
from scanner.engine.scan import ScanWork, check_controls
from scanner.engine.session import LOCAL
from scanner.engine.work import Observer
from scanner.errors import ConfigError
from scanner.memory.options import method_of
from scanner.memory.private import drop, private_store
from scanner.memory.result import ModelAnalysis
from scanner.rmt.ensembles import Ensemble
from scanner.store import Store


def analyze_model(
    model: object,
    *,
    name: str | None = None,
    config: object = None,
    method: Method | None = None,
    ensembles: Sequence[Ensemble] = (),
    draws: int = 1,
    workers: int | None = None,
    device: str = "cpu",
    observer: Observer | None = None,
    **options: Any,
) -> ModelAnalysis:
    """Analyze every weight matrix of a model in memory; nothing is written to a disk, and the model does not change.

    The matrices, their roles and their rows are those of a scan of the saved model, bit for bit at one thread; what saves a weight
    under two names, or in parts, is the same here. In addition, weights under `torch.nn.utils.parametrize`, pruning or spectral
    norm are analyzed as the module computes them. Of a model with adapters (PEFT) the base weights are analyzed, and the result
    says what became of the adapters. Tensors without plain numbers (on the meta device, sparse, quantized in a way that is not
    decoded) are listed in `ModelAnalysis.skipped` with the reason.

    Args:
        model: a `torch.nn.Module`, a state dict, or another mapping from names to arrays (torch, numpy, or anything that numpy
            converts), each of shape (out_features, in_features) or as its architecture stores it.
        name: name of the model in the results; None: the name in its config, or that of its class.
        config: what its config.json says, for state dicts: the architecture, and the numbers of heads; a dict, or a config of
            transformers. None: the config of the module, if it has one.
        method: what is computed; None: the defaults, with `options`.
        ensembles: random controls, as in a scan; none unless named here.
        draws: number of draws of each control.
        workers: number of processes, which a private Ray on this machine runs; None: everything in this process, on one core,
            which takes less time for up to about a minute of work.
        device: where this process decomposes matrices: `cpu`, or a GPU (`cuda`).
        observer: receives the progress.
        options: fields of `Method` and `Selection` instead of `method`: `roles="query"`, `layers=range(4)`, `heads=True`,
            `embeddings=True`, `scale="none"`, `sigma="bulk"`, ...

    Returns:
        The tables of the scan. Matrices that cannot be analyzed, such as those with NaN entries, are in `failures`.

    Examples:
        >>> import torch
        >>> import scanner
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
        >>> analysis = scanner.analyze_model(model, name="mlp")
        >>> analysis
        ModelAnalysis('mlp': 2 matrices, 0 failed, 2 tensors skipped)
        >>> analysis.matrices.select(["tensor", "rows", "cols"]).to_pylist()
        [{'tensor': '0.weight', 'rows': 256, 'cols': 64}, {'tensor': '2.weight', 'rows': 64, 'cols': 256}]
        >>> analysis.vectors.num_rows
        128

    Raises:
        ConfigError: `model` is no model, or an option has a value that is not accepted.
        CheckpointError: no matrix can be analyzed; the message says why.
        ScannerError: with `workers`, Ray does not start.
    """
    if name is not None and not isinstance(name, str):
        raise ConfigError("name", f"must be a text, got {name!r}")
    if observer is not None and not isinstance(observer, Observer):
        raise ConfigError("observer", f"must be a `scanner.engine.Observer`, got {observer!r}")
    chosen = method_of(method, options)
    check_controls(ensembles, draws)
    check_device(device)
    if workers is not None and device != "cpu":
        raise ConfigError(
            "device", "is where this process computes: leave it out with `workers`, which use the GPUs there are"
        )
    pool = None if workers is None else PoolOptions(address=LOCAL, workers=workers)
    with opened_model(model, name=name, config=config, serve=pool is not None) as checkpoint:
        checkpoint = identity_of(checkpoint, checkpoint.tensors)
        store = private_store()
        try:
            scan_id = scan_opened(
                checkpoint,
                store,
                chosen,
                ensembles,
                draws=draws,
                pool=pool,
                device=device,
                observer=observer or Observer(),
            )
        except BaseException:
            drop(store)
            raise
    return ModelAnalysis(store, scan_id)


def scan_opened(
    checkpoint: Checkpoint,
    store: Store,
    method: Method,
    ensembles: Sequence[Ensemble] = (),
    *,
    draws: int = 1,
    pool: PoolOptions | None = None,
    device: str = "cpu",
    observer: Observer,
) -> str:
    """Scan an opened checkpoint in memory into a store, in this process or (with `pool`) on Ray; returns the id of the scan.

    Raises:
        CheckpointError: no matrix can be analyzed.
        ScannerError: the store cannot be written, or Ray does not start.
    """
    work = ScanWork(store, method, observer, ensembles, draws=draws, strict=True)
    work.add_opened(checkpoint.model, checkpoint, force=False)
    refused = work.reports.get(checkpoint.model)
    if refused is not None and refused.error is not None:
        work.close()
        raise refused.error
    if pool is None:
        run_inline(work, observer, device=device)
    else:
        run([work], pool, observer)
    report = work.reports[checkpoint.model]
    if report.error is not None:
        raise report.error
    return report.scan_id
