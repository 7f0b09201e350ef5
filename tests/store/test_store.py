import re
from datetime import timedelta
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanner.errors import StoreError, StoreWarning
from scanner.store import SCHEMAS, Store, open_store
from scanner.store.compaction import compact

from .rows import Matrix, Pair, add_comparison, add_scan, control, scan_values


def test_a_store_that_does_not_exist_says_how_to_make_one(tmp_path: Path) -> None:
    url = str(tmp_path / "results")
    with pytest.raises(
        StoreError, match=re.escape(f"no store at '{url}': a scan into it (rmtscan scan REF --store {url}) creates one")
    ):
        open_store(url)
    assert not Path(url).exists()


def test_a_folder_with_other_things_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(StoreError, match="no store at"):
        open_store(str(tmp_path))


def test_a_new_store_is_empty_and_can_be_opened_again(tmp_path: Path) -> None:
    url = str(tmp_path / "deep" / "results")
    assert open_store(url, create=True).url == url
    assert [path.name for path in Path(url).iterdir()] == ["scans"]
    store = open_store(url)
    assert (store.committed(), store.unfinished()) == ([], [])


@pytest.mark.parametrize("create", [False, True])
def test_a_file_is_no_store(tmp_path: Path, create: bool) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        open_store(str(tmp_path / "file"), create=create)


def test_a_store_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot be written: .*choose another `store`"):
        open_store(str(tmp_path / "file" / "store"), create=True)


def test_a_store_below_a_folder_that_takes_no_files_says_so() -> None:
    with pytest.raises(StoreError, match="choose another `store`"):
        open_store("/proc/rmtscan", create=True)


@pytest.mark.parametrize("url", ["nosuchprotocol://x/y", "", "  "])
def test_a_url_that_leads_nowhere_says_so(url: str) -> None:
    with pytest.raises(StoreError, match=r"cannot be reached|is empty"):
        open_store(url)


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("results", create=True)
    assert store.url == str(tmp_path / "results")
    monkeypatch.chdir("/")
    add_scan(store, "one", [Matrix()])
    assert store.sql("from vectors").num_rows == 4


def test_everything_is_typed_and_empty_before_the_first_scan(store: Store) -> None:
    for view in ("scans", "matrices", "vectors", "all_matrices", "all_vectors", "failures", "controls"):
        answer = store.sql(f"from {view}")
        expected = SCHEMAS[view.removeprefix("all_")]
        assert answer.num_rows == 0
        assert [(field.name, field.type) for field in answer.schema] == [(field.name, field.type) for field in expected]


@pytest.mark.parametrize("name", ["it's", "a*b", "a[b]c", "what?", "run=3", "100%", "ü ñ", '"quoted"', "a;b", "{x}$y"])
def test_a_store_may_have_any_name(tmp_path: Path, name: str) -> None:
    # A folder whose name the pattern `a*b` or `what?` would match too.
    for other in ("a-other-b", "abc", "whatx"):
        add_scan(open_store(str(tmp_path / other), create=True), "one", [Matrix(tensor="wrong")])
    store = open_store(str(tmp_path / name), create=True)
    add_scan(store, "one", [Matrix()])
    assert store.sql("select tensor from matrices").to_pylist() == [{"tensor": "block.0.query"}]
    assert store.sql("from vectors").schema.names == SCHEMAS["vectors"].names
    assert open_store(store.url).query("layer_trend").num_rows == 1


def test_a_store_behind_a_symbolic_link_can_be_read(store: Store, tmp_path: Path) -> None:
    add_scan(store, "one", [Matrix()])
    (tmp_path / "link").symlink_to(store.url)
    assert open_store(str(tmp_path / "link")).sql("from vectors").num_rows == 4


def test_a_store_in_any_other_file_system_works_the_same(memory_url: str) -> None:
    with pytest.raises(StoreError, match="no store at"):
        open_store(memory_url)
    store = open_store(memory_url, create=True)
    assert store.sql("from vectors").num_rows == 0
    writer = store.writer("one", method={}, model="org/model")
    writer.stage("a", *Matrix(tensor="a").tables("one", "org/model", "r1"))
    assert [scan.parts for scan in store.unfinished()] == [1]
    resumed = open_store(memory_url).writer("one", method={}, model="org/model")
    assert resumed.staged() == {"a"}
    resumed.stage("b", *Matrix(tensor="b").tables("one", "org/model", "r1"))
    resumed.commit(scan_values())
    writer.commit(scan_values(hours=1))
    store.write_control(control(2, 2, singular_values=[2, 1], u_p=[0.5, 0.5], v_p=[0.5, 0.5]), 2, 2, "gaussian", 0)

    assert store.has_control(2, 2, "gaussian", 0)
    assert (store.committed(), store.unfinished()) == (["one"], [])
    again = open_store(memory_url)
    assert again.sql("select tensor, count(*) as n from vectors group by all order by all").to_pylist() == [
        {"tensor": "a", "n": 4},
        {"tensor": "b", "n": 4},
    ]
    assert again.sql("from controls").num_rows == 2
    files = fsspec.filesystem("memory")
    left = [path for path in files.find(memory_url) if "staging" in path or path.endswith(".tmp")]
    assert left == []


def test_scanning_again_by_force_works_in_any_other_file_system(memory_url: str) -> None:
    store = open_store(memory_url, create=True)
    add_scan(store, "one", [Matrix()])
    assert store.sql("select sum(singular_value) as s from vectors").to_pylist() == [{"s": 10.0}]
    add_scan(store, "one", [Matrix(singular_values=(5.0, 1.0))], hours=1)
    assert store.sql("select sum(singular_value) as s from vectors").to_pylist() == [{"s": 6.0}]


def test_other_files_in_the_folders_are_not_read(store: Store) -> None:
    add_scan(store, "one", [Matrix()])
    for folder in ("scans", "vectors", "matrices"):
        for name in (".one.parquet.abc.tmp", ".hidden.parquet", "notes.txt"):
            Path(store.url, folder, name).write_text("no Parquet file")
    Path(store.url, "vectors", "uncommitted.parquet").write_text("no Parquet file")
    assert store.committed() == ["one"]
    assert open_store(store.url).sql("from all_vectors").num_rows == 4


def test_a_committed_file_that_is_gone_is_named(store: Store) -> None:
    add_scan(store, "one", [Matrix()])
    Path(store.url, "vectors", "one.parquet").unlink()
    with pytest.warns(StoreWarning, match=r"vectors/one\.parquet' is missing; it is left out") as told:
        assert store.sql("from vectors").num_rows == 0
    assert len(told) == 1
    assert "\n" not in str(told[0].message)


def test_a_damaged_row_of_scans_is_named(store: Store) -> None:
    add_scan(store, "one", [Matrix()])
    Path(store.url, "scans", "one.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match=r"one\.parquet' is damaged"):
        store.scan_row("one")
    with pytest.warns(StoreWarning, match=r"scans/one\.parquet"):
        assert store.sql("from scans").num_rows == 0


def test_an_open_store_sees_scans_and_controls_committed_later(store: Store) -> None:
    assert store.sql("from matrices").num_rows == 0
    add_scan(open_store(store.url), "one", [Matrix()])
    assert store.sql("from matrices").num_rows == 1
    table = control(2, 2, singular_values=[2, 1], u_p=[0.5, 0.5], v_p=[0.5, 0.5])
    open_store(store.url).write_control(table, 2, 2, "gaussian", 7)
    assert store.sql("from controls").num_rows == 2


def test_a_control_lies_where_the_contract_says(store: Store) -> None:
    table = control(4, 2, singular_values=[1, 2], u_p=[0.5, 0.25], v_p=[0.5, 0.5], ensemble="kaiming_uniform", seed=3)
    table = table.set_column(table.column_names.index("k"), "k", pa.array([1, 0], pa.int32()))
    assert not store.has_control(4, 2, "kaiming_uniform", 3)
    store.write_control(table, 4, 2, "kaiming_uniform", 3)
    assert store.has_control(4, 2, "kaiming_uniform", 3)
    assert not store.has_control(2, 4, "kaiming_uniform", 3)
    path = Path(store.url, "controls", "4x2-kaiming_uniform-3.parquet")
    assert store.control_path(4, 2, "kaiming_uniform", 3) == "controls/4x2-kaiming_uniform-3.parquet"
    assert pq.read_table(path)["k"].to_pylist() == [0, 1]
    assert pq.read_table(path)["singular_value"].to_pylist() == [2, 1]


@pytest.mark.parametrize("ensemble", ["../x", "a/b", "", "Gaussian", "a-b"])
def test_an_ensemble_whose_name_is_no_file_name_is_refused(store: Store, ensemble: str) -> None:
    with pytest.raises(ValueError, match="ensemble"):
        store.has_control(1, 1, ensemble, 0)


def test_a_file_that_another_process_created_and_removed_at_once_is_not_ours(
    memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_store(memory_url, create=True).files

    def refuse(*_: object, **__: object) -> None:
        raise FileExistsError

    monkeypatch.setattr(files.fs, "pipe_file", refuse)
    assert files.create("leases/one.json", b"own") is False


def test_a_folder_in_memory_is_removed_with_all_that_is_in_it_and_nothing_else(memory_url: str) -> None:
    files = open_store(memory_url, create=True).files
    for path in ("staging/one/a", "staging/one/deep/b", "staging/one-more/c"):
        files.write_bytes(path, b"content")
    files.remove_folder("staging/one")
    assert (files.is_folder("staging/one"), files.read_bytes("staging/one/a")) == (False, None)
    assert files.folders("staging") == ["one-more"]
    assert files.read_bytes("staging/one-more/c") == b"content"
    files.remove_folder("staging/none")


@pytest.mark.parametrize("compacted", [False, True])
def test_a_narrowed_store_answers_from_the_chosen_results_only(tmp_path: Path, compacted: bool) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    for name in "abc":
        add_scan(store, name, [Matrix()], model=name)
        add_comparison(store, f"pair-{name}", [Pair()], base="a", tuned=name)
    if compacted:
        compact(store, grace=timedelta(0))
    own = store.narrowed(["a", "c"], ["pair-b"])
    for table in ("scans", "matrices", "vectors", "all_matrices"):
        found = own.sql(f"select distinct model from {table} order by model")["model"].to_pylist()
        assert found == ["a", "c"], table
    assert own.sql("select pair_id from comparisons")["pair_id"].to_pylist() == ["pair-b"]
    assert own.sql("select distinct pair_id from pairs")["pair_id"].to_pylist() == ["pair-b"]
    assert {row["model"] for row in own.query("fleet_overview").to_pylist()} == {"a", "c"}
    assert {row["model"] for row in store.query("fleet_overview").to_pylist()} == {"a", "b", "c"}
