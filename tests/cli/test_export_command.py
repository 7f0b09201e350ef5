"""`rmtscan export`: what is written where, and what is said."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan

from .conftest import Run

ROLES = {"query": "q", "key": "k", "value": "v", "attn_out": "o"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"), create=True)
    more = {"outliers_left_scale": 0, "outliers_right_scale": 2, "scale_kind": "robust"}
    add_scan(
        made,
        "a",
        [
            Matrix(
                tensor=f"h.{layer}.{short}.weight",
                layer=layer,
                role=role,
                singular_values=(4.0 + layer, 3.0, 2.0, 1.0),
                more=more,
            )
            for layer in range(2)
            for role, short in ROLES.items()
        ],
    )
    return made


@pytest.mark.parametrize("tool", ["spectrum", "axolotl", "peft", "alphapruning", "csv", "json"])
def test_without_a_file_the_export_goes_to_stdout(rmtscan: Run, store: Store, tool: str) -> None:
    told = rmtscan("export", tool, "org/model", "--store", store.url)
    assert told.status == 0
    text = told.out.decode()
    if tool in ("peft", "alphapruning", "json"):
        json.loads(text)
    else:
        assert text.startswith('"scan_id"' if tool == "csv" else "unfrozen_parameters:\n")


def test_the_suffix_selects_the_other_file_of_a_tool(rmtscan: Run, store: Store, tmp_path: Path) -> None:
    ratios, alphas = tmp_path / "snr.json", tmp_path / "alpha_mid.npy"
    assert rmtscan("export", "spectrum", "org/model", "-o", ratios, "--store", store.url).status == 0
    assert {*json.loads(ratios.read_text("utf-8"))} == {f"h.{layer}.{short}" for layer in (0, 1) for short in "qkvo"}
    told = rmtscan(
        "export", "alphapruning", "org/model", "--ww-metric", "alpha_mid", "-o", alphas, "--store", store.url
    )
    assert f"{alphas}: " in told.err
    assert np.load(alphas).shape == (8,)
    refused = rmtscan("export", "spectrum", "org/model", "--by", "p", "-o", tmp_path / "x.json", "--store", store.url)
    assert refused.status == 2
    assert "has the snr only" in refused.told


def test_a_folder_for_peft_and_its_advice(rmtscan: Run, store: Store, tmp_path: Path) -> None:
    told = rmtscan("export", "peft", "org/model", "--roles", "query,key", "-o", tmp_path / "lora", "--store", store.url)
    assert told.status == 0
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == ["adapter_config.json", "advice.json"]
    found = json.loads((tmp_path / "lora" / "adapter_config.json").read_text("utf-8"))
    assert found["target_modules"] == ["h.0.k", "h.0.q", "h.1.k", "h.1.q"]
    assert found["r"] == 2
    assert "init_lora_weights 'pissa' (largest components): in 4 of 4 matrices" in told.err


@pytest.mark.parametrize(("tool", "name"), [("csv", "rows.csv"), ("peft", "lora")])
def test_nothing_is_overwritten_without_force(rmtscan: Run, store: Store, tmp_path: Path, tool: str, name: str) -> None:
    arguments = ("export", tool, "org/model", "-o", tmp_path / name, "--store", store.url)
    assert rmtscan(*arguments).status == 0
    again = rmtscan(*arguments)
    assert (again.status, len(again.errors)) == (1, 1)
    assert "exists: name another one, or overwrite it with --force" in again.errors[0]
    assert rmtscan(*arguments, "--force").status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["spectrum", "org/other"], "is not scanned"),
        (["spectrum", "org/model", "--roles", "qk"], "--roles has 'qk', which Spectrum does not know"),
        (["peft", "org/model", "--roles", "router"], "--roles has 'router', which PEFT does not know"),
        (
            ["alphapruning", "org/model", "--roles", "lm_head"],
            "--roles has 'lm_head', which AlphaPruning does not know",
        ),
        (["alphapruning", "org/model", "--epsilon", "0.9"], "--epsilon 0.9 is too large"),
        (["csv", "org/model", "-o", "gone/rows.csv"], "there is no folder"),
        (["csv", "org/model", "-o", "."], "is a folder: name a file"),
        (["csv", "org/model", "--store", "nowhere"], "there is no store"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    rmtscan: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = rmtscan("export", *arguments, *([] if "nowhere" in arguments else ["--store", store.url]))
    assert (told.status, len(told.errors)) == (1, 1)
    assert words in told.errors[0]


def test_a_full_disk_is_one_line_and_leaves_nothing(
    rmtscan: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    told = rmtscan("export", "csv", "org/model", "-o", tmp_path / "rows.csv", "--store", store.url)
    assert (told.status, len(told.errors)) == (1, 1)
    assert told.errors[0].endswith("rows.csv cannot be written: No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_gguf_file_is_refused_because_its_names_are_others(rmtscan: Run, tmp_path: Path) -> None:
    made = open_store(str(tmp_path / "store"), create=True)
    writer = made.writer("a", method={"sigma": "median"}, model="org/gguf")
    matrix = Matrix(tensor="blk.0.attn_q.weight")
    writer.stage(matrix.key, *matrix.tables("a", "org/gguf", "r1"))
    from tests.store.rows import scan_values

    writer.commit(scan_values(revision="r1") | {"format": "gguf"})
    told = rmtscan("export", "spectrum", "org/gguf", "--store", made.url)
    assert (told.status, len(told.errors)) == (1, 1)
    assert "is a GGUF file" in told.errors[0]
    assert rmtscan("export", "csv", "org/gguf", "--store", made.url).status == 0
