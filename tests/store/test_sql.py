from pathlib import Path

import pytest

from scanner.errors import QueryError
from scanner.store import Store, open_store

from .rows import Matrix, add_scan


@pytest.fixture
def filled(store: Store) -> Store:
    add_scan(store, "one", [Matrix()])
    return store


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("select count(*) as n from vectors", 4),
        ("  SELECT 1 ; -- done", 1),
        ("/* a; b */ select 2", 2),
        ("from (values (3))", 3),
        ("values (4)", 4),
        ("table matrices", "one"),
        ("(select 5)", 5),
        ("with a as (select 6 as x), b as (from a) select x from b", 6),
        ("with recursive t(n) as (select 1 union all select n + 1 from t where n < 7) select max(n) from t", 7),
        ("select 8 union all select 9 order by 1", 8),
        ("with a as materialized (select 10 as x) from a", 10),
        ("describe vectors", "scan_id"),
        ("summarize vectors", "scan_id"),
        ("show tables", "ablations"),
        ("pivot (select 1 as x, 2 as y) on x in (1) using sum(y)", 2),
        ("select ';drop table scans;--'", ";drop table scans;--"),
    ],
)
def test_one_statement_that_reads_is_answered(filled: Store, text: str, first: object) -> None:
    assert filled.sql(text).column(0)[0].as_py() == first


NOT_ONE_SELECT = [
    "",
    "-- nothing",
    ";",
    "select 1; select 2",
    "select 1; drop table scans",
    "insert into scans select * from scans",
    "delete from scans",
    "update scans set model = 'x'",
    "drop view vectors",
    "create table t as select 1",
    "create or replace view vectors as select 1",
    "create macro role_order(role) as 1",
    "alter table scans rename to s",
    "copy scans to '{store}/x.csv'",
    "copy (select 1) to '{store}/scans/x.parquet'",
    "copy scans from '{secret}'",
    "export database '{store}/x'",
    "import database '{store}/x'",
    "attach '{store}/x.db'",
    "attach ':memory:' as m",
    "detach memory",
    "use memory",
    "install httpfs",
    "load httpfs",
    "set lock_configuration = false",
    "set threads = 1",
    "set variable paths = ['x']",
    "reset allowed_directories",
    "pragma database_list",
    "pragma threads = 1",
    "call pragma_version()",
    "checkpoint",
    "vacuum",
    "begin transaction",
    "prepare p as select 1",
    "execute p",
    "explain select 1",
    "explain analyze copy (select 1) to '{store}/x.csv'",
    "merge into scans using scans as s on true when matched then delete",
    "with a as (insert into scans select * from scans returning *) from a",
    "with a as (delete from scans returning *) from a",
    "with a as (update scans set model = 'x' returning *) from a",
    "with a as (copy (select 1) to '{store}/x.csv') select 1",
    "with a as (copy (select 1) to '{store}/scans/x.parquet') from a",
    "with a as (select 1), b as (copy (from a) to '{store}/x.csv') from b",
    "pivot vectors on region using count(*)",
    "create secret s (type s3)",
]


@pytest.mark.parametrize("text", NOT_ONE_SELECT)
def test_anything_else_is_refused_and_changes_nothing(filled: Store, tmp_path: Path, text: str) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    filled.sql("select 1")
    before = snapshot(tmp_path)
    with pytest.raises(QueryError) as refused:
        filled.sql(text.format(store=filled.url, secret=tmp_path / "secret.csv"))
    assert "\n" not in str(refused.value)
    assert snapshot(tmp_path) == before
    assert filled.sql("select count(*) as n from scans").to_pylist() == [{"n": 1}]


@pytest.mark.parametrize(
    "text",
    [
        "from read_csv('{secret}')",
        "from read_csv('/etc/passwd')",
        "from read_text('{secret}')",
        "from read_text('/proc/self/environ')",
        "from read_blob('{secret}')",
        "from read_json('{secret}')",
        "from read_parquet('{other}/scans/one.parquet')",
        "from '{other}/scans/one.parquet'",
        "from read_text('{store}/../secret.csv')",
        "from read_text('{store}/../../../../../../../../../../etc/passwd')",
        "from read_text('{store}/link')",
        "from read_text('{store}2/secret.csv')",
        "from glob('/etc/*')",
        "from sniff_csv('{secret}')",
        "from parquet_metadata('{other}/scans/one.parquet')",
        "from parquet_schema('{other}/scans/one.parquet')",
        "from read_parquet('https://localhost/x.parquet')",
        "from read_parquet('s3://bucket/x.parquet')",
        "select getenv('HOME')",
        "from duckdb_secrets()",
        "from enable_logging(storage = 'file', storage_path = '{store}/log')",
        "from enable_profiling(save_location = '{store}/profile.json')",
        "from query('copy (select 1) to ''{store}/x.csv''')",
        "from query('with a as (copy (select 1) to ''{store}/x.csv'') from a')",
        "from (with a as (copy (select 1) to '{store}/x.csv') from a)",
        "from caller_s_variable",
    ],
)
def test_nothing_outside_the_store_can_be_read(filled: Store, tmp_path: Path, text: str) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    (tmp_path / "store2").mkdir()
    (tmp_path / "store2" / "secret.csv").write_text("a\n1\n")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret.csv")
    other = open_store(str(tmp_path / "other"), create=True)
    add_scan(other, "one", [Matrix()])
    caller_s_variable = other.sql("from matrices")
    assert caller_s_variable.num_rows == 1
    before = snapshot(tmp_path)
    with pytest.raises(QueryError) as refused:
        filled.sql(text.format(store=filled.url, secret=tmp_path / "secret.csv", other=other.url))
    assert "\n" not in str(refused.value)
    assert snapshot(tmp_path) == before


def test_the_settings_are_locked(filled: Store) -> None:
    wanted = ["enable_external_access", "lock_configuration", "python_enable_replacements"]
    settings = filled.sql(
        "select name, value from duckdb_settings() where name in (select unnest($names)) order by name",
        {"names": wanted},
    )
    assert [row["value"] for row in settings.to_pylist()] == ["false", "true", "false"]


def test_no_file_appears_in_the_working_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store.sql("select count(*) from (select distinct i from range(100000) t(i))")
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("value", ["block.0.query", "' or true --", "'; drop table scans; --", "$other", "\\", "ü\n"])
def test_values_are_bound_not_pasted(filled: Store, value: str) -> None:
    answer = filled.sql("select $text as text, count(*) as n from matrices where tensor = $text", {"text": value})
    assert answer.to_pylist() == [{"text": value, "n": int(value == "block.0.query")}]
    assert filled.sql("select ? as text", [value]).to_pylist() == [{"text": value}]


@pytest.mark.parametrize(
    ("text", "params", "said"),
    [
        ("select nothing from matrices", None, "nothing"),
        ("from matrixes", None, "matrices"),
        ("select 1 +", None, "syntax error"),
        ("select $a", None, "parameters: a"),
        ("select $a", {"a": 1, "b": 1}, "parameters: b"),
        ("select 'x'::integer", None, "'x'"),
        ("select '\x1b[31m'::integer", None, "?[31m"),
    ],
)
def test_a_statement_that_fails_says_why_on_one_line(
    filled: Store, text: str, params: dict[str, object] | None, said: str
) -> None:
    with pytest.raises(QueryError) as refused:
        filled.sql(text, params)
    assert said in str(refused.value)
    assert str(refused.value).isprintable()
    assert filled.sql("select 1 as x").to_pylist() == [{"x": 1}]


def test_sql_on_another_file_system_is_locked_in_too(memory_url: str, tmp_path: Path) -> None:
    store = open_store(memory_url, create=True)
    add_scan(store, "one", [Matrix()])
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for text in (
        f"from read_csv('{tmp_path}/secret.csv')",
        f"from read_csv('file://{tmp_path}/secret.csv')",
        f"with a as (copy (select 1) to '{memory_url}/x.csv') from a",
        f"from read_parquet('{memory_url}-other/x.parquet')",
    ):
        with pytest.raises(QueryError):
            store.sql(text)
