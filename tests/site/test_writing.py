"""What a site is written from, which files change when a store changes, and what is refused; without a browser."""

from __future__ import annotations

import base64
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.errors import ScannerError
from scanner.site import write_site
from scanner.site.answers import answers, batches
from scanner.site.content import STEPS, UNKNOWN, heat
from scanner.site.models import key_of, models_of
from scanner.site.space import write_space
from scanner.site.writing import MANIFEST, state_of
from scanner.store import Store, open_store
from scanner.store.compaction import compact
from tests.report.pair_rows import add_pair
from tests.store.rows import Matrix, add_scan, scan_values
from tests.store.test_staging_comparisons import METHOD

from .conftest import EVIL

BASE = key_of("org/base")


@pytest.fixture
def own(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


def layers(count: int = 2, **more: object) -> list[Matrix]:
    return [Matrix(tensor=f"block.{layer}.query", layer=layer, more=dict(more)) for layer in range(count)]


def read(folder: Path, path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / path).read_text("utf-8"))
    return found


def test_the_index_has_every_model_in_less_than_two_kilobytes(folder: Path) -> None:
    index = read(folder, "index.json")
    assert [one["name"] for one in index["models"]][:1] != []
    assert {one["key"] for one in index["models"]} == {BASE, key_of(EVIL), key_of("org/third")}
    for one in index["models"]:
        assert len(json.dumps(one)) <= 2048
    [tuned] = [one for one in index["models"] if one["key"] == key_of(EVIL)]
    assert tuned["bases"] == [BASE]
    assert index["unfinished"] == [{"name": "org/late<b>", "parts": 1}]


def test_no_file_has_a_character_that_steers_what_shows_it_and_entries_stay_small(own: Store, tmp_path: Path) -> None:
    def name(kind: str) -> str:
        return f"{kind}\u202e\x1b[2J\x85" + "x" * 10_000

    rows = [Matrix(tensor=name(f"t{i}"), stack=name("stack"), role=name(f"{i} role"), layer=1) for i in range(20)]
    slices = [Matrix(tensor=name("s"), stack=name("stack"), role=name("role"), more={"module": name("module")}, head=0)]
    add_scan(own, "odd", [*rows, *slices], model=name("model"), revision=name("revision"), failed=[name("failed")])
    write_site(own, tmp_path / "site")
    for file in (tmp_path / "site").rglob("*.json"):
        if file.name != "rmtscan-site.json":
            content = file.read_text("utf-8")
            assert content.isprintable(), file.name
            assert r"\u001b" not in content, file.name  # as JSON writes it
    for one in read(tmp_path / "site", "index.json")["models"]:
        assert len(json.dumps(one)) <= 2048


def test_the_heat_strip_is_the_mean_of_both_sides() -> None:
    row = {f"d{decile}": None for decile in range(1, 11)}
    rows = [{**row, "role": "key", "d1": 0.1, "d10": 1.0}, {**row, "role": "key", "d1": 0.3, "d10": 1.0}]
    assert heat(rows) == {"key": "20" + "--" * 8 + "99"}


def test_aggregates_are_means_of_the_vectors_of_the_store(folder: Path, store: Store) -> None:
    found = read(folder, f"models/{BASE}/model.json")["map"]
    shape = (len(found["places"]), len(found["roles"]), 10, 4)
    packed = np.frombuffer(base64.b64decode(found["deciles"]), np.uint8).reshape(shape)
    names = ["u_p", "v_p", "u_p_scale", "v_p_scale"]
    vectors = store.vector_rows("scan0", ["layer", "role", "k", *names]).to_pylist()
    for place, (_, layer) in enumerate(found["places"]):
        for role, name in enumerate(found["roles"]):
            for decile in range(1, 11):
                rows = [
                    row
                    for row in vectors
                    if (row["layer"], row["role"]) == (layer, name) and 10 - 10 * row["k"] // 24 == decile
                ]
                for part, column in enumerate(names):
                    values = [row[column] for row in rows if row[column] is not None]
                    stored = packed[place, role, decile - 1, part]
                    if not values:
                        assert stored == UNKNOWN
                    else:
                        assert stored / STEPS == pytest.approx(float(np.mean(values)), abs=0.51 / STEPS)


def test_only_models_whose_results_changed_are_written_again(own: Store, tmp_path: Path) -> None:
    add_scan(own, "a", layers(), model="one")
    add_scan(own, "b", layers(), model="two")
    target = tmp_path / "site"
    first = write_site(own, target)
    assert (first.models, first.written) == (2, 2)
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()}
    assert write_site(own, target).written == 0
    assert {
        path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file() and path.name != MANIFEST
    } == {path: time for path, time in before.items() if path.name != MANIFEST}
    known = state_of(own)
    add_scan(own, "c", layers(3), model="two", hours=1)
    assert state_of(own) != known
    again = write_site(own, target)
    assert (again.models, again.written) == (2, 1)
    bins = [path for path in (target / "models" / key_of("two")).iterdir() if path.suffix == ".bin"]
    assert len(bins) == 1, "the file of the earlier state is removed"
    assert len(read(target, f"models/{key_of('two')}/matrices.json")["columns"]["tensor"]) == 3


def test_the_same_store_makes_the_same_site(own: Store, tmp_path: Path) -> None:
    add_scan(own, "a", layers())
    for name in ("one", "two"):
        write_site(own, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert files
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


@pytest.mark.parametrize(("limit", "compacted"), [("MODELS", False), ("MODELS", True), ("TRIPLETS", False)])
def test_models_have_the_same_files_whether_they_are_asked_about_together_or_one_by_one(
    own: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, compacted: bool
) -> None:
    for number in range(3):
        first, last = f"model-{number}", f"model-{number} newest"
        add_scan(own, f"s{number}", layers(number + 1), model=first, hours=number, failed=["lost", EVIL])
        add_scan(own, f"t{number}", layers(1), model=first, hours=9 + number, sigma="std")
        add_scan(own, f"u{number}", layers(2), model=last, revision="r1", hours=number)
        add_scan(own, f"v{number}", layers(3), model=last, revision="r2", hours=9 + number)
    add_scan(own, "d", layers(), model="delta:model-0..model-1")
    add_pair(own, "model-0", "model-1", [("query", layer, 24, 24) for layer in range(2)], method=METHOD)
    if compacted:
        compact(own, grace=timedelta(0))
    write_site(own, tmp_path / "together")
    monkeypatch.setattr(f"scanner.site.answers.{limit}", 1)
    write_site(own, tmp_path / "one by one")
    files = [path for path in (tmp_path / "together").rglob("*") if path.is_file()]
    assert len(files) > 7 * 4
    for path in files:
        assert (tmp_path / "one by one" / path.relative_to(tmp_path / "together")).read_bytes() == path.read_bytes()


def test_a_batch_sees_its_own_models_and_differences_are_asked_about_alone(own: Store) -> None:
    for name in ("a", "b", "c", "delta:a..b", "delta:a..c"):
        add_scan(own, f"scan-{key_of(name)}", layers(), model=name)
    models = models_of(own)
    assert [[model.name for model in batch] for batch in batches(models)] == [
        ["a", "b", "c"],
        ["delta:a..b"],
        ["delta:a..c"],
    ]
    for chosen in (models[:2], models[3:4]):
        found = answers(own, chosen)
        assert [*found] == [model.name for model in chosen]
        for name, answer in found.items():
            assert {row["model"] for row in [*answer.matrices, *answer.roles, *answer.scans]} == {name}
            assert len(answer.matrices) == answer.vectors.num_rows == 2
            assert {*answer.vectors["model"].to_pylist()} == {name}


def test_a_run_that_was_ended_is_continued(own: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        add_scan(own, f"scan-{name}", layers(), model=name)
    monkeypatch.setattr("scanner.site.answers.MODELS", 1)

    def end_at_the_third(told: str) -> None:
        if told.startswith("c"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_site(own, tmp_path / "site", progress=end_at_the_third)
    assert write_site(own, tmp_path / "site").written == 1
    assert write_site(own, tmp_path / "site").written == 0


def test_heads_have_files_of_their_own_and_models_without_heads_none(folder: Path, store: Store) -> None:
    tuned, base = (folder / "models" / key_of(name) for name in (EVIL, "org/base"))
    assert not [*base.glob("heads.json"), *base.glob("slices*")]
    heads = read(tuned, "heads.json")
    assert [(role["role"], role["heads"]) for role in heads["roles"]] == [("query", [0, 1]), ("qk", [0, 1])]
    rows = store.query("head_trend", model=EVIL).to_pylist()
    at = {layer: number for number, (_, layer) in enumerate(heads["places"])}
    for role in heads["roles"]:
        for row in (row for row in rows if row["role"] == role["role"] and row["layer"] in at):
            assert role["means"]["p"][at[row["layer"]]][row["head"]] == pytest.approx(row["p"], rel=1e-3)
            assert role["means"]["above"][at[row["layer"]]][row["head"]] == row["outliers_above"]
    assert [*at] == [0, 1, None]
    listed = read(tuned, "slices.json")
    assert len(listed["columns"]["offset"]) == 9
    # Pages look up the slices by these names, also by long ones.
    for name in ("role", "module"):
        assert {role[name] for role in heads["roles"]} - {None} == {*listed["words"][name]}
    assert {stack for stack, _ in heads["places"]} == {*listed["words"]["stack"]}
    assert len(read(tuned, "matrices.json")["columns"]["offset"]) == 7


def test_the_law_of_products_is_that_of_products_of_random_matrices(folder: Path) -> None:
    [(shape, (nu, density))] = read(folder / "models" / key_of(EVIL), "slices.json")["laws"].items()
    rows, cols, width = map(int, shape.split("x"))
    assert (rows, cols, width) == (24, 20, 4)
    assert np.trapezoid(density, nu) == pytest.approx(1.0, abs=2e-3)
    random = np.random.default_rng(0)
    # At a hundred times the size, the singular values of a product lie where the law says.
    big = random.normal(size=(2400, 400)) @ random.normal(size=(400, 2000))
    values = np.linalg.svd(big, compute_uv=False)[:400] / np.sqrt(2400 * 2000)
    law = np.concatenate([[0.0], np.cumsum(0.5 * (np.add(density[1:], density[:-1])) * np.diff(nu))])
    assert np.abs(np.interp(np.sort(values), nu, law) - (np.arange(400) + 0.5) / 400).max() < 0.02


def test_an_empty_store_has_a_site_that_says_so(own: Store, tmp_path: Path) -> None:
    assert write_site(own, tmp_path / "site").models == 0
    assert "no finished scan" in (tmp_path / "site" / "index.html").read_text("utf-8")


def test_unfinished_scans_are_named_and_not_counted(own: Store, tmp_path: Path) -> None:
    own.writer("u", method={}, model="org/late").stage("m", *Matrix().tables("u", "org/late", "r"))
    assert write_site(own, tmp_path / "site").models == 0
    assert "org/late (1 matrices so far)" in (tmp_path / "site" / "index.html").read_text("utf-8")


def test_no_path_of_this_machine_is_in_a_site(own: Store, tmp_path: Path) -> None:
    writer = own.writer("a", method={}, model="models/mine")
    writer.stage("m", *Matrix().tables("a", "models/mine", "r"))
    secret = str(tmp_path / "secret" / "mine")
    writer.commit(scan_values(source=secret, skipped=1, skipped_tensors={f"{secret} is odd": ["t"]}, failed=0))
    write_space(own, tmp_path / "site")
    for path in (tmp_path / "site").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_a_model_of_ten_thousand_matrices_stays_small_until_it_is_looked_at(own: Store, tmp_path: Path) -> None:
    import pyarrow as pa

    from scanner.store.files import StoreFiles
    from scanner.store.tables import SCHEMAS, file_metadata

    first = Matrix(tensor="t", role="mlp_up")
    matrices, vectors = first.tables("a", "moe", "r1")
    count = 10_000
    numbers = np.arange(count)
    names = pa.array([f"model.layers.{i // 250}.experts.{i % 250}.up" for i in numbers])

    def many(table: pa.Table) -> pa.Table:
        each = table.num_rows
        repeated = table.take(np.tile(np.arange(each), count))
        values = {
            "tensor": names.take(np.repeat(numbers, each)),
            "layer": np.repeat(numbers // 250, each),
            "expert": np.repeat(numbers % 250, each),
        }
        for name, column in values.items():
            at = repeated.column_names.index(name)
            repeated = repeated.set_column(
                at, repeated.schema.field(name), pa.array(column, repeated.schema.field(name).type)
            )
        return repeated

    files = StoreFiles(own.url)
    row = {
        "scan_id": "a",
        "model": "moe",
        "revision": "r1",
        "matrices": count,
        "vectors": 4 * count,
        "failed": 0,
        **scan_values(),
    }
    scans = pa.Table.from_pylist(
        [{k: v for k, v in row.items() if k in SCHEMAS["scans"].names}], schema=SCHEMAS["scans"]
    )
    for table, rows in (("matrices", many(matrices)), ("vectors", many(vectors)), ("scans", scans)):
        files.write(f"{table}/a.parquet", rows, file_metadata({}))
    write_site(own, tmp_path / "site")
    folder = tmp_path / "site" / "models" / key_of("moe")
    assert (folder / "model.json").stat().st_size < 50_000
    assert (folder / "index.html").stat().st_size < 50_000
    listed = read(folder, "matrices.json")["columns"]
    assert len(listed["tensor"]) == count
    assert sorted(listed["offset"]) == [96 * i for i in range(count)]


@pytest.mark.parametrize("place", ["inside", "file", "other", "url"])
def test_a_folder_that_cannot_be_used_is_refused(own: Store, tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    target, told = {
        "inside": (f"{own.url}/site", "contain one another"),
        "file": (str(tmp_path / "a-file"), "is a file"),
        "other": (str(tmp_path / "other"), "thesis.tex"),
        "url": ("s3://bucket/site", "not a local folder"),
    }[place]
    with pytest.raises(ScannerError, match=told):
        write_site(own, target)
    write_site(own, tmp_path / "other", force=True)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "x"


def test_a_manifest_cannot_have_files_outside_of_the_site_removed(own: Store, tmp_path: Path) -> None:
    target = tmp_path / "site"
    write_site(own, target)
    (tmp_path / "precious").write_text("x")
    found = read(target, MANIFEST)
    found["files"] += ["../precious", "models/../../precious"]
    (target / MANIFEST).write_text(json.dumps(found))
    write_site(own, target)
    assert (tmp_path / "precious").exists()


def test_a_space_has_the_card_that_the_hub_reads(store: Store, tmp_path: Path) -> None:
    write_space(store, tmp_path / "space", name="A: title\n---\nsdk: docker")
    import yaml

    _, front, _ = (tmp_path / "space" / "README.md").read_text("utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert (card["sdk"], card["app_file"]) == ("static", "index.html")
    assert card["title"] == "A: title --- sdk: docker"
    assert write_space(store, tmp_path / "space").written == 0
    with pytest.raises(ScannerError, match="license"):
        write_space(store, tmp_path / "space", license_id="no license\nx: y")


def test_keys_are_safe_and_differ() -> None:
    names = ["org/a", "org-a", "ORG/A", "../..", "", EVIL, "\udcff"]
    keys = {key_of(name) for name in names}
    assert len(keys) == len(names)
    for key in keys:
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert 0 < len(key) <= 64


@pytest.mark.parametrize(("base", "tuned"), [("org/gone", "org/model"), ("org/model", "org/gone")])
def test_no_page_links_to_a_model_whose_scan_was_removed(own: Store, tmp_path: Path, base: str, tuned: str) -> None:
    add_scan(own, "a", [Matrix(rows=24, cols=24)], model="org/model")
    add_pair(own, base, tuned, [("query", layer, 24, 24) for layer in range(2)], method=METHOD)
    write_site(own, tmp_path / "site")
    key = key_of("org/model")
    page = (tmp_path / "site" / "models" / key / "index.html").read_text("utf-8")
    assert {*re.findall(r"models/([a-z0-9-]+)/index", page)} <= {key}
    assert key_of("org/gone") not in page
    assert ("From org/gone" in page, "no longer has a scan of the base" in page) == (tuned == "org/model",) * 2
    [entry] = read(tmp_path / "site", "index.json")["models"]
    assert not {"tunes", "bases"} & {*entry}


def test_models_know_their_comparisons(store: Store) -> None:
    found = {model.name: model for model in models_of(store)}
    assert [pair[:2] for pair in found["org/base"].pairs] == [("org/base", EVIL)]
    assert found["org/third"].pairs == ()
