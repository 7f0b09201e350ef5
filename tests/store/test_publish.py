"""Published stores: readable by `datasets`, DuckDB and rmtscan, unchanged when published again, without local paths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scanner.errors import StoreError
from scanner.store import SCHEMAS, Store, open_store
from scanner.store import publish as publishing
from scanner.store.compaction import compact
from scanner.store.publish import CARD, MANIFEST, publish, without_local_paths

from .rows import Matrix, add_scan, control, failure, scan_values
from .test_staging_comparisons import METHOD, piece, row

HERE = "/home/someone/secret models"


@pytest.fixture
def full(store: Store) -> Store:
    """A scan with a failure, an unfinished scan, controls, a comparison, an experiment; with local paths where possible."""
    writer = store.writer("a", method={"sigma": "median"}, model="org/one")
    writer.stage("m", *Matrix().tables("a", "org/one", "r1"))
    lost = failure("a", "lost", "org/one").to_pylist()[0] | {"message": f"cannot read '{HERE}/model.safetensors': gone"}
    writer.stage_failure("lost", pa.Table.from_pylist([lost], schema=SCHEMAS["failures"]))
    writer.commit(
        scan_values(source=f"{HERE}/one", base_model="/mnt/base/llama", environment={"cache": "/srv/cache/x"})
    )
    add_scan(store, "b", [Matrix(tensor="t")], model="org/two", hours=1)
    store.writer("unfinished", method={}, model="org/three").stage(
        "m", *Matrix().tables("unfinished", "org/three", "r")
    )
    store.write_control(control(4, 4, singular_values=[1.0], u_p=[0.5], v_p=[0.5]), 4, 4, "gaussian", 0)
    batch = store.comparison("pair", method=METHOD)
    batch.stage("early", piece("a", 0))
    batch.commit(["early"], lambda _: row())
    point = {"run_id": "r", "kind": "ablate", "model": "org/one", "source": f"{HERE}/one", "dataset": "./texts/a.txt"}
    rows = pa.Table.from_pylist([point], schema=SCHEMAS["experiments"])
    store.write_rows("experiments", "r", rows, method={"text": "/data/private/a.txt"})
    return store


def test_of_the_configuration_of_a_night_only_what_was_watched_and_how_is_published(
    store: Store, tmp_path: Path
) -> None:
    add_scan(store, "a", [Matrix()])
    sections = {
        "watch": {"authors": ["org"]},
        "budget": {"models": 3},
        "method": {"sigma": "median"},
        "output": {"store": "s3://private/results", "digests": "s3://KEY:SECRET@private/digests"},
        "pool": {"address": "10.1.2.3:6379"},
        "night": {"attempts": 3},
    }
    night = {"night_id": "20261101T120000Z-0000", "watch_id": "w", "state": "done", "config": json.dumps(sections)}
    rows = pa.Table.from_pylist([night], schema=SCHEMAS["nights"])
    store.write_rows("nights", night["night_id"], rows, method={})
    publish(store, tmp_path / "published")
    [published] = open_store(str(tmp_path / "published")).query("nights").to_pylist()
    assert json.loads(published["config"]) == {key: sections[key] for key in ("watch", "budget", "method")}
    assert not any(
        b"private" in content or b"10.1.2.3" in content for content in contents(tmp_path / "published").values()
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def front_matter(folder: Path) -> dict[str, object]:
    found = yaml.safe_load((folder / CARD).read_text("utf-8").split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_committed_results_are_published_and_nothing_else(full: Store, tmp_path: Path) -> None:
    published = publish(full, tmp_path / "to")
    counts = {found.table: found.rows for found in published}
    assert counts == {
        "scans": 2,
        "matrices": 2,
        "vectors": 8,
        "failures": 1,
        "controls": 1,
        "comparisons": 1,
        "pairs": 1,
        "pair_vectors": 2,
        "pair_subspaces": 1,
        "experiments": 1,
    }
    written = contents(tmp_path / "to")
    assert not [path for path in written if "unfinished" in path or "staging" in path or path.endswith(".tmp")]
    assert "failures/b.parquet" not in written, "a table of no rows only makes readers stumble"
    assert all(found.bytes > 0 and found.files > 0 for found in published)


def test_no_path_of_this_machine_is_published(full: Store, tmp_path: Path) -> None:
    publish(full, tmp_path / "to")
    for path in (tmp_path / "to").rglob("*.parquet"):
        table = pq.read_table(path)
        told = str(table.to_pylist()) + str(table.schema.metadata)
        for part in ("/home", "secret", "/mnt", "/srv", "/data", "./texts", str(tmp_path)):
            assert part not in told, path
    copy = open_store(str(tmp_path / "to"))
    scans = copy.sql("SELECT source, base_model, environment FROM scans WHERE scan_id = 'a'").to_pylist()
    assert scans == [{"source": "org/one", "base_model": "llama", "environment": '{"cache": "x"}'}]
    messages = copy.sql("SELECT message FROM failures")["message"].to_pylist()
    assert messages == ["cannot read 'model.safetensors': gone"]
    assert copy.sql("SELECT source, dataset FROM experiments").to_pylist() == [
        {"source": "org/one", "dataset": "a.txt"}
    ]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/me/model", "model"),
        ("file:///home/me/model", "model"),
        (r"C:\Users\me\model.gguf is short", "model.gguf is short"),
        ("'/home/me/my models/x.bin' is short", "'x.bin' is short"),
        ("~/models/x: gone", "x: gone"),
        ("../up/x", "x"),
        ("read /a/b, then /c/d.", "read b, then d."),
        ("hf://org/name@main/file", "hf://org/name@main/file"),
        ("s3://bucket/key and https://host/page", "s3://bucket/key and https://host/page"),
        ("org/name", "org/name"),
        ("1/2 of 3 / 4", "1/2 of 3 / 4"),
        ('{"path": "/a b/c"}', '{"path": "c"}'),
    ],
)
def test_paths_are_shortened_and_urls_are_not(text: str, clean: str) -> None:
    assert without_local_paths(text) == clean


def test_the_card_makes_a_config_of_every_table_and_names_hold_no_markup(store: Store, tmp_path: Path) -> None:
    evil = 'a|b "x": <script>\n---\n[y](z)\u202e'
    add_scan(store, "a", [Matrix()], model=evil)
    publish(store, tmp_path / "to", name=evil, license_id="mit")
    found = front_matter(tmp_path / "to")
    assert found["license"] == "mit"
    assert str(found["pretty_name"]).startswith('a|b "x": <script>')
    configs = found["configs"]
    assert isinstance(configs, list)
    assert [config["config_name"] for config in configs] == ["scans", "matrices", "vectors"]
    assert [config["config_name"] for config in configs if config.get("default")] == ["matrices"]
    text = (tmp_path / "to" / CARD).read_text("utf-8").split("---\n", 2)[2]
    assert "<script>" not in text
    assert "\u202e" not in text
    assert "[y]" not in text


def test_duckdb_reads_every_config(full: Store, tmp_path: Path) -> None:
    publish(full, tmp_path / "to")
    configs = front_matter(tmp_path / "to")["configs"]
    assert isinstance(configs, list)
    for config in configs:
        glob = str(tmp_path / "to" / config["data_files"])
        found = duckdb.sql("SELECT * FROM read_parquet($files)", params={"files": glob}).to_arrow_table()
        assert found.column_names == SCHEMAS[config["config_name"]].names
        assert found.num_rows > 0


def test_datasets_loads_every_config(full: Store, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    publish(full, tmp_path / "to")
    program = (
        "import sys, datasets\n"
        "datasets.disable_progress_bars()\n"
        "for name in datasets.get_dataset_config_names(sys.argv[1]):\n"
        "    print(name, datasets.load_dataset(sys.argv[1], name, split='train').num_rows)\n"
        "print('default', datasets.load_dataset(sys.argv[1], split='train').num_rows)\n"
    )
    quiet = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "to")],
        capture_output=True,
        text=True,
        env=os.environ | quiet,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert counts["matrices"] == counts["default"] == "2"
    assert counts["vectors"] == "8"
    assert counts["pairs"] == counts["failures"] == "1"


def test_publishing_again_changes_nothing_and_follows_the_store(full: Store, tmp_path: Path) -> None:
    target = tmp_path / "to"
    publish(full, target)
    before = contents(target)
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*.parquet")}
    publish(full, target)
    assert contents(target) == before
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*.parquet")} == times

    (target / "notes.txt").write_text("mine")
    Path(full.url, "scans", "b.parquet").unlink()
    publish(full, target)
    after = contents(target)
    assert not [path for path in after if path.endswith("/b.parquet")]
    assert after["notes.txt"] == b"mine"
    assert (target / "failures" / "a.parquet").is_file()


def test_an_older_file_without_a_column_gets_it(store: Store, tmp_path: Path) -> None:
    add_scan(store, "a", [Matrix()])
    path = Path(store.url, "matrices", "a.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["module"]).replace_schema_metadata({}), path)
    row = Path(store.url, "scans", "a.parquet")
    pq.write_table(pq.read_table(row).drop_columns(["files"]).replace_schema_metadata({}), row)
    publish(store, tmp_path / "to")
    assert pq.read_schema(tmp_path / "to" / "matrices" / "a.parquet").names == SCHEMAS["matrices"].names


def test_a_clone_of_an_empty_repository_can_be_published_into(full: Store, tmp_path: Path) -> None:
    (tmp_path / "to" / ".git").mkdir(parents=True)
    (tmp_path / "to" / ".gitattributes").write_text("*.parquet filter=lfs")
    publish(full, tmp_path / "to")
    assert (tmp_path / "to" / CARD).is_file()


def test_a_folder_of_something_else_is_left_alone(full: Store, tmp_path: Path) -> None:
    target = tmp_path / "to"
    (target / "scans").mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"'mine\.txt' and is not an earlier publication"):
        publish(full, target)
    assert not (target / CARD).exists()
    publish(full, target, force=True)
    assert (target / "mine.txt").read_text() == "mine"


def test_a_strange_manifest_removes_nothing_outside(full: Store, tmp_path: Path) -> None:
    target = tmp_path / "to"
    target.mkdir()
    (tmp_path / "precious.parquet").write_text("keep")
    (target / MANIFEST).write_text('{"files": ["../precious.parquet", "scans/../../precious.parquet", 5]}')
    publish(full, target)
    assert (tmp_path / "precious.parquet").read_text() == "keep"


@pytest.mark.parametrize("inside", ["", "scans", "new/folder"])
def test_a_store_is_not_published_into_itself(full: Store, inside: str) -> None:
    with pytest.raises(StoreError, match="contain one another"):
        publish(full, Path(full.url) / inside, force=True)


def test_what_cannot_be_published_is_said_in_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished scan"):
        publish(store, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    add_scan(store, "a", [Matrix()])
    with pytest.raises(StoreError, match="not a local folder"):
        publish(store, "hf://datasets/org/name")
    with pytest.raises(StoreError, match="license"):
        publish(store, tmp_path / "to", license_id="mit\ntags: [x]")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        publish(store, tmp_path / "file")
    Path(store.url, "vectors", "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(StoreError, match="damaged"):
        publish(store, tmp_path / "to")


def test_a_store_that_is_not_local_is_published(memory_url: str, tmp_path: Path) -> None:
    remote = open_store(memory_url, create=True)
    add_scan(remote, "a", [Matrix()])
    publish(remote, tmp_path / "to")
    assert open_store(str(tmp_path / "to")).sql("SELECT count(*) AS n FROM vectors")["n"].to_pylist() == [4]


def test_a_compacted_store_is_published_as_before_and_only_changes_are_written(
    full: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(full, tmp_path / "to")
    before = contents(tmp_path / "to")
    compact(full, grace=timedelta(0))
    read: list[str] = []
    original = publishing._publish_file
    monkeypatch.setattr(
        publishing, "_publish_file", lambda *arguments: (read.append(arguments[1]), original(*arguments))[1]
    )
    publish(full, tmp_path / "to")
    assert not [path for path in read if path.startswith(("matrices/", "vectors/", "failures/", "pair"))]
    after = contents(tmp_path / "to")
    assert {path for path in before if before[path] != after.get(path)} <= {"scans/a.parquet", "scans/b.parquet"}
    assert {*after} == {*before}
    publish(full, tmp_path / "new")
    one, other = (open_store(str(tmp_path / name)) for name in ("to", "new"))
    for table in SCHEMAS:
        hidden = "exclude (files)" if "files" in SCHEMAS[table].names else ""
        assert one.sql(f'select * {hidden} from "{table}" order by all').equals(
            other.sql(f'select * {hidden} from "{table}" order by all')
        )
    assert {found.state for found in other.verify()} == {"whole"}
