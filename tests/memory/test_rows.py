"""`analyze_model` has the rows of a scan of the saved model, bit for bit at one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import scanner
from scanner import Method, PoolOptions, Selection, open_store
from scanner.checkpoint import list_matrices, read_matrix
from scanner.checkpoint.memory import opened_model
from scanner.engine.scan import scan as run_scan
from scanner.store.tables import SCHEMAS
from tests.checkpoint.tiny_models import CASES, build

from .models import comparable, tiny

ONE = PoolOptions(workers=1, share_cores=False)
KINDS = ("llama", "gpt2", "bert")


def scanned(folder: Path, store: Path, method: Method) -> Any:
    """The store of a scan, and the row of the scan."""
    [report] = run_scan(folder, store=store, method=method, ensembles=(), pool=ONE).models
    assert report.error is None
    found = open_store(str(store))
    return found, found.scan_row(report.scan_id)


def check(result: scanner.ModelAnalysis, store: scanner.Store, row: Any) -> None:
    ours = {"matrices": result.matrices, "vectors": result.vectors}
    theirs = {name: store.sql(f"SELECT * FROM all_{name}") for name in ours}
    for name, table in ours.items():
        assert table.schema.equals(SCHEMAS[name])
        assert table.column_names == theirs[name].select(SCHEMAS[name].names).column_names
        order = ["tensor", "role", "head", *(["k"] if name == "vectors" else [])]
        keys = [(column, "ascending") for column in order]
        found = comparable(table.sort_by(keys))
        assert len(found) > 0
        assert found == comparable(theirs[name].select(SCHEMAS[name].names).sort_by(keys))
    about = result._row
    same = ("model", "architecture", "dtype", "matrices", "vectors", "failed", "method", "initializer_range")
    assert {name: about[name] for name in same} == {name: row[name] for name in same}


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    "method",
    [Method(selection=Selection(embeddings=True)), Method(sigma="bulk", scale="none", selection=Selection(heads=True))],
    ids=["whole", "heads"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_and_the_same_in_memory(kind: str, method: Method, tmp_path: Path) -> None:
    model = tiny(kind)
    model.save_pretrained(tmp_path / kind)
    store, row = scanned(tmp_path / kind, tmp_path / "store", method)
    check(scanner.analyze_model(model, name=kind, method=method), store, row)
    state = {name: tensor.numpy() for name, tensor in load_file(tmp_path / kind / "model.safetensors").items()}
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    check(scanner.analyze_model(state, name=kind, config=config, method=method), store, row)


@pytest.mark.usefixtures("local_ray")
def test_a_real_model(minilm: Path, tmp_path: Path) -> None:
    import transformers

    method = Method(selection=Selection(layers=(2,)))
    store, row = scanned(minilm, tmp_path / "store", method)
    model = transformers.AutoModel.from_pretrained(minilm)
    result = scanner.analyze_model(model, name=row["model"], layers=2)
    # transformers casts and renames nothing here, so the bits are those of the file.
    check(result, store, row)
    assert result.matrices.num_rows == 6
    assert result.save(tmp_path / "saved") == result.scan_id
    saved = open_store(str(tmp_path / "saved"))
    assert saved.committed() == [result.scan_id]
    assert {one.state for one in saved.verify()} == {"whole"}
    assert comparable(saved.sql("FROM all_vectors")) == comparable(result.vectors)
    stored = saved.scan_row(result.scan_id)
    assert stored is not None
    assert (stored["format"], stored["source"]) == ("memory", f"in-memory:{row['model']}")


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_has_the_matrices_of_its_files(name: str, tmp_path: Path) -> None:
    """The same roles and numbers; transformers changes some names when it saves, and stacks experts differently."""
    built = build(name, tmp_path)

    def found(source: str, refs: Any) -> list[Any]:
        keys = [(ref.stack or "", ref.layer or 0, ref.role, ref.module or "", ref.expert or 0) for ref in refs]
        return sorted(
            (key, bytes(read_matrix(source, ref).double().contiguous().numpy().tobytes()))
            for key, ref in zip(keys, refs, strict=True)
        )

    with opened_model(built.model) as opened:
        ours = found(opened.source, list_matrices(opened).matrices)
    assert ours == found(built.opened.source, built.inventory.matrices)


@pytest.mark.usefixtures("local_ray")
def test_workers_read_the_model_from_this_process(tmp_path: Path) -> None:
    model = tiny("gpt2")
    alone = scanner.analyze_model(model, embeddings=True)
    shared = scanner.analyze_model(model, embeddings=True, workers=2)
    assert comparable(shared.vectors) == comparable(alone.vectors)
    assert comparable(shared.matrices) == comparable(alone.matrices)
    assert shared.scan_id == alone.scan_id


def test_a_model_keeps_its_numbers_and_settings(tmp_path: Path) -> None:
    model = tiny("llama").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads = torch.get_num_threads()
    scanner.analyze_model(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.get_num_threads() == threads
    assert all(parameter.grad is None for parameter in model.parameters())
