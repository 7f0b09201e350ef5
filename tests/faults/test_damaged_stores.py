"""A committed result is believed only if its files are there and whole; damage to one does not affect the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scanner.cli.main import application
from scanner.engine.method import Method
from scanner.engine.scan import ScanWork
from scanner.engine.work import Observer
from scanner.errors import StoreError, StoreWarning
from scanner.store import Store, open_store
from scanner.store.publish import publish

from .here import run_here
from .stores import DAMAGES, Damage, compared, cut_short, one_bit

TABLES = ("scans", "matrices", "vectors", "comparisons", "pairs", "pair_vectors", "pair_subspaces", "controls")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        compared(folder, patch)
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made / "store", tmp_path / "store")
    return open_store(str(tmp_path / "store"))


def first(store: Store, table: str) -> Path:
    return min((Path(store.url) / table).glob("*.parquet"))


def verb(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        application()(list(arguments), prog_name="rmtscan")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_whole_store_is_whole(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert {found.state for found in store.verify()} == {"whole"}
    assert verb("verify", store.url) == 0
    assert "0 missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_file_is_found(store: Store, table: str, damage: Damage) -> None:
    file = first(store, table)
    if damage.__name__ == "removed" and table in ("scans", "comparisons", "controls"):
        pytest.skip("nothing else says that this file was there")
    damage(file)
    [found] = [found for found in store.verify() if found.state == "damaged"]
    assert found.file == f"{table}/{file.name}"
    assert found.problem
    assert "again" in found.remedy


def test_every_byte_of_a_committing_row_counts(store: Store) -> None:
    file = first(store, "scans")
    content = file.read_bytes()
    for position in range(0, len(content), 97):
        file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert any(found.state == "damaged" for found in store.verify()), position


def test_the_verb_lists_damage_and_ends_with_3(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    one_bit(first(store, "vectors"))
    assert verb("verify", store.url, "--format", "csv") == 3
    shown = capsys.readouterr()
    assert "vectors/" in shown.out
    assert "--force" in shown.out
    assert "1 missing or damaged" in shown.err
    assert verb("verify", store.url, "--all", "--rows", "1") == 3
    assert "in all; a larger --rows prints them" in capsys.readouterr().err, "--all was given"


@pytest.mark.parametrize("damage", DAMAGES[:3])
@pytest.mark.parametrize("table", ["scans", "matrices", "vectors"])
def test_one_damaged_file_leaves_the_other_scans(store: Store, table: str, damage: Damage) -> None:
    file = first(store, table)
    damage(file)
    expected = {path.stem for path in Path(store.url, "scans").glob("*.parquet")} - {file.stem}
    if table == "scans" and not file.exists():
        pytest.skip("then the scan was never committed")
    relation = "all_vectors" if table == "scans" else f"all_{table}"
    with pytest.warns(StoreWarning, match=file.name):
        found = store.sql(f"select distinct scan_id from {relation}")["scan_id"].to_pylist()
    assert {*found} == expected


@pytest.mark.parametrize("table", ["pairs", "comparisons", "controls"])
def test_damage_elsewhere_leaves_the_scans(store: Store, table: str) -> None:
    cut_short(first(store, table))
    found = store.sql("select count(distinct scan_id) as scans from all_vectors")["scans"].to_pylist()
    assert found == [3], "a question that does not need the damaged file"
    with pytest.warns(StoreWarning, match=table):
        store.sql(f"from {table}")


class Told(Observer):
    def __init__(self) -> None:
        self.problems: list[str] = []

    def damaged(self, problem: str) -> None:
        self.problems.append(problem)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("table", ["scans", "matrices", "vectors"])
def test_scanning_again_repairs(
    made: Path, store: Store, monkeypatch: pytest.MonkeyPatch, table: str, damage: Damage
) -> None:
    before = store.sql("select * from all_vectors order by all")
    told = Told()
    work = ScanWork(store, Method(), told)
    for name in ("base", "tuned"):
        work.add(str(made / name), force=False, download=False)
    assert work.jobs == {}

    [scan_id] = [str(row["scan_id"]) for row in store.sql("select scan_id from scans where model = 'base'").to_pylist()]
    damage(Path(store.url) / table / f"{scan_id}.parquet")
    work = ScanWork(store, Method(), told)
    for name in ("base", "tuned"):
        work.add(str(made / name), force=False, download=False)
    assert [*work.jobs] == [scan_id]
    if not (table == "scans" and damage.__name__ == "removed"):
        assert scan_id in told.problems[0]
    run_here(monkeypatch, work)
    assert {found.state for found in store.verify()} == {"whole"}
    assert store.sql("select * from all_vectors order by all").equals(before)


@pytest.mark.parametrize("table", ["vectors", "pairs", "controls"])
def test_nothing_damaged_is_published(store: Store, tmp_path: Path, table: str) -> None:
    one_bit(first(store, table))
    with pytest.raises(StoreError, match="nothing is published") as raised:
        publish(store, tmp_path / "to")
    assert table in str(raised.value)
    assert not (tmp_path / "to").exists()


def test_a_publication_is_whole_too(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "to")
    published = open_store(str(tmp_path / "to"))
    assert {found.state for found in published.verify()} == {"whole"}
    one_bit(first(published, "matrices"))
    assert [found.state for found in published.verify()].count("damaged") == 1


def test_a_damaged_part_is_computed_again(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "new"), create=True)
    work = ScanWork(store, Method(), Observer(), ensembles=())
    work.add(str(made / "base"), force=False, download=False)
    monkeypatch.setattr(work, "_commit", lambda job: None)
    run_here(monkeypatch, work)
    parts = sorted((tmp_path / "new" / "staging").rglob("*.arrow"))
    for part in parts[:3]:
        one_bit(part)
    again = ScanWork(store, Method(), Observer(), ensembles=())
    again.add(str(made / "base"), force=False, download=False)
    [job] = again.jobs.values()
    assert len(job.todo) == 3
