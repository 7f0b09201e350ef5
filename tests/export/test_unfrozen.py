"""`unfrozen_parameters` for Spectrum and axolotl, read back by the rules that these tools document.

Spectrum: README.md and spectrum.py of github.com/cognitivecomputations/spectrum, commit 0ed1756. axolotl: `freeze_layers_except` in
src/axolotl/utils/freeze.py and the field `unfrozen_parameters` (list of str) in src/axolotl/utils/schemas/config.py of
github.com/axolotl-ai-cloud/axolotl, commit 067b021. The frozen numbers are what spectrum.py itself computed.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from scanner.errors import ConfigError, ScannerError
from scanner.export import axolotl, snr_results, spectrum
from scanner.export.unfrozen import layer_type, spectrum_snr, top_of_types
from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan

HEAD = ["^lm_head.weight$", "^model.embed_tokens.weight$"]
TYPES = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"] + [f"self_attn.{kind}_proj" for kind in "koqv"]


def heavy(seed: int, rows: int, cols: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, cols))
    return drawn * (1.0 + np.arange(cols)) ** -0.7


@pytest.mark.parametrize(
    ("seed", "rows", "cols", "snr"),
    [(0, 48, 32, 0.27530804824767513), (1, 32, 32, 0.2930139159248935), (2, 24, 60, 0.45310924607718606)],
)
def test_the_ratio_is_spectrums(seed: int, rows: int, cols: int, snr: float) -> None:
    s = np.linalg.svd(heavy(seed, rows, cols), compute_uv=False)
    assert spectrum_snr(s, rows, cols) == pytest.approx(snr, rel=1e-9)


def test_the_ratio_of_special_spectra() -> None:
    # Quartiles 2 and 4 of 1 ... 5: threshold 2 / 1.349 * 2 = 2.965, above 3 + 4 + 5, below 1 + 2.
    assert spectrum_snr(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), 5, 5) == pytest.approx(12.0 / 3.0 / 5.0)
    assert spectrum_snr(np.ones(4), 4, 4) == 4.0  # nothing below: an empty sum counts as 1
    assert math.isinf(spectrum_snr(np.array([1.0, 0.0, 0.0, 0.0, 0.0]), 5, 5))
    assert math.isnan(spectrum_snr(np.zeros(4), 4, 4))


def test_the_first_of_each_type_are_taken_and_nan_comes_last() -> None:
    values = {f"h.{layer}.{kind}": float(layer) for layer in range(5) for kind in ("q", "k")}
    assert top_of_types(values, 50.0) == {"k": ["h.4.k", "h.3.k"], "q": ["h.4.q", "h.3.q"]}
    assert top_of_types(values | {"h.4.q": math.nan}, 40.0)["q"] == ["h.3.q", "h.2.q"]
    assert top_of_types(values, 100.0)["q"] == [f"h.{layer}.q" for layer in (4, 3, 2, 1, 0)]
    assert (layer_type("model.layers.3.mlp.up_proj"), layer_type("lm_head")) == ("mlp.up_proj", "lm_head")


@pytest.mark.parametrize("by", ["snr", "outliers", "p", "p_scale"])
def test_spectrum_reads_its_file_and_trains_what_was_chosen(store: Store, folder: Path, by: str) -> None:
    text, left_out = spectrum(store, "llama", by=by, top=50.0)  # type: ignore[arg-type]
    entries = yaml.safe_load(text)["unfrozen_parameters"]
    assert entries[:2] == HEAD
    assert left_out == ()
    assert re.findall("^# (.*) layers$", text, re.M) == TYPES
    model = AutoModelForCausalLM.from_pretrained(folder / "llama")
    modules = dict(model.named_modules())
    assert all(isinstance(modules[name], torch.nn.Linear) for name in entries[2:])
    # The rule of the README: a parameter is trained if its name contains an entry.
    trained = [name for name, _ in model.named_parameters() if any(entry in name for entry in entries)]
    assert len(trained) == len(entries) - 2 == 7 * 2


def test_spectrums_own_rule_gives_the_same_modules(store: Store, folder: Path) -> None:
    text, _ = spectrum(store, "llama", top=50.0)
    model = AutoModelForCausalLM.from_pretrained(folder / "llama")
    for kind in TYPES:
        ratios = {}
        for name, module in model.named_modules():
            if name.endswith(kind):
                s = torch.linalg.svdvals(module.weight.detach())
                sigma = (torch.quantile(s, 0.75) - torch.quantile(s, 0.25)) / 1.349
                beta = min(module.weight.shape) / max(module.weight.shape)
                above = s > sigma * math.sqrt((1 + math.sqrt(beta)) ** 2)
                ratios[name] = float(s[above].sum() / s[~above].sum() / s[0])
        expected = sorted(ratios, key=lambda name: ratios[name], reverse=True)[:2]
        assert [name for name in yaml.safe_load(text)["unfrozen_parameters"] if name.endswith(kind)] == expected


def test_the_json_file_is_what_spectrum_and_axolotl_read(store: Store) -> None:
    found = json.loads(snr_results(store, "llama")[0], parse_constant=pytest.fail)
    assert len(found) == 28
    by_type: dict[str, list[tuple[str, float]]] = {}
    for name, about in found.items():  # as `generate_unfrozen_params_yaml` does
        assert {*about} == {"snr", "type"}
        by_type.setdefault(about["type"], []).append((name, about["snr"]))
    chosen = [
        name
        for of_type in by_type.values()
        for name, _ in sorted(of_type, key=lambda pair: pair[1], reverse=True)[: len(of_type) // 2]
    ]
    assert {*chosen} == {*yaml.safe_load(spectrum(store, "llama")[0])["unfrozen_parameters"][2:]}


def test_axolotl_trains_exactly_the_chosen_parameters(store: Store, folder: Path) -> None:
    text, _ = axolotl(store, "llama", by="p_scale", top=25.0)
    entries = yaml.safe_load(text)["unfrozen_parameters"]
    assert all(isinstance(entry, str) for entry in entries)
    # `LayerNamePattern`: periods are literal, and the pattern is matched at the beginning.
    patterns = [re.compile(re.sub(r"\.(?!\+)", "\\.", entry)) for entry in entries]
    model = AutoModelForCausalLM.from_pretrained(folder / "llama")
    trained = {name for name, _ in model.named_parameters() if any(pattern.match(name) for pattern in patterns)}
    blocks = {name for name in trained if "layers" in name}
    assert blocks == {
        f"{name}.weight"
        for name in yaml.safe_load(spectrum(store, "llama", by="p_scale", top=25.0)[0])["unfrozen_parameters"][2:]
    }
    assert trained - blocks == {"lm_head.weight", "model.embed_tokens.weight"}


def test_a_pattern_matches_no_other_layer(tmp_path: Path) -> None:
    made = open_store(str(tmp_path / "store"), create=True)
    matrices = [
        Matrix(tensor=f"h.{layer}.q_proj.weight", layer=layer, more={"u_p_mean": 0.9 - 0.8 * (layer == 1)})
        for layer in (1, 11)
    ]
    add_scan(made, "a", matrices)
    entries = yaml.safe_load(axolotl(made, "org/model", by="p")[0])["unfrozen_parameters"]
    assert entries == [*HEAD, "^h.1.q_proj.weight$"]
    assert not re.match(entries[2], "h.11.q_proj.weight")


def test_names_that_mean_something_in_yaml_or_in_patterns_are_quoted(tmp_path: Path) -> None:
    made = open_store(str(tmp_path / "store"), create=True)
    name = "block: 0 # [x]\n- everything"
    add_scan(made, "a", [Matrix(tensor=f"{name}.weight")])
    assert yaml.safe_load(spectrum(made, "org/model", top=100.0)[0]) == {"unfrozen_parameters": [*HEAD, name]}
    [pattern] = yaml.safe_load(axolotl(made, "org/model", top=100.0)[0])["unfrozen_parameters"][2:]
    assert re.match(re.sub(r"\.(?!\+)", "\\.", pattern), f"{name}.weight")


def test_what_has_no_module_is_left_out_with_one_line_for_each_kind(store: Store) -> None:
    text, left_out = spectrum(store, "mixtral", top=100.0)
    assert [line for line in left_out if "single experts" in line] == [left_out[0]]
    assert "experts" not in text
    text, left_out = spectrum(store, "gpt2", top=100.0)
    assert left_out == ("6 left out: parts of fused weights, for which Spectrum has no single number",)
    assert "c_attn" not in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"roles": ("qk",)}, "'qk', which Spectrum does not know"),
        ({"roles": ("nonsense",)}, "unknown role 'nonsense'"),
        ({"by": "size"}, "`by` must be one of"),
        ({"top": 0.0}, "`top` must be between 0 and 100"),
        ({"top": 3.0}, "`top` 3 selects no module: a type has at most 4, so it must be at least 25"),
    ],
)
def test_unsuitable_arguments_are_refused(store: Store, more: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        spectrum(store, "llama", **more)  # type: ignore[arg-type]


def test_a_scan_without_what_is_ranked_by_is_refused(tmp_path: Path) -> None:
    made = open_store(str(tmp_path / "store"), create=True)
    add_scan(made, "a", [Matrix(tensor="h.0.q_proj.weight")])
    with pytest.raises(ScannerError, match="has no scale null: scan it again"):
        spectrum(made, "org/model", by="p_scale")
    with pytest.raises(ScannerError, match="no matrix that Spectrum can use: none has the roles mlp_up"):
        spectrum(made, "org/model", roles=("mlp_up",))
