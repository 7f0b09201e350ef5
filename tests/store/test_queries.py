import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.errors import QueryError
from scanner.store import Query, Store, open_store
from scanner.store import queries as queries_module
from scanner.store.queries import load_queries, parse_query, register_query

HEADER = """\
-- title: How many
-- about: The first line
--   and the second.
-- param: model VARCHAR = NULL | only this model
-- param: limit INTEGER = 10 | at most so many
-- param: above DOUBLE | the least value
-- param: heads BOOLEAN = FALSE | heads
--   instead
-- column: model | its name
-- column: count | how many, number
"""
TEXT = f"{HEADER}select 1 -- not a header line\n"


def test_a_header_is_read() -> None:
    query = parse_query("how_many", TEXT)
    assert (query.name, query.title, query.about) == ("how_many", "How many", "The first line\nand the second.")
    assert [(param.name, param.type, param.required, param.default) for param in query.params] == [
        ("model", "VARCHAR", False, None),
        ("limit", "INTEGER", False, 10),
        ("above", "DOUBLE", True, None),
        ("heads", "BOOLEAN", False, False),
    ]
    assert query.params[3].help == "heads\ninstead"
    assert [(column.name, column.help) for column in query.columns] == [
        ("model", "its name"),
        ("count", "how many, number"),
    ]
    assert query.sql == TEXT
    assert (query.shown, query.totals, query.figures) == ((), (), ())


def test_a_header_says_what_a_terminal_shows() -> None:
    more = "-- show: model,\n--   both = model | count\n-- total of one model: count\n"
    text = TEXT.replace("select", f"{more}select").replace("-- param: model", "-- chart: depth\n-- param: model")
    query = parse_query("how_many", text.replace("column: count |", "column: count [1/s] |"))
    assert [(one.name, one.columns, one.between) for one in query.shown] == [
        ("model", ("model",), ""),
        ("both", ("model", "count"), "|"),
    ]
    assert (query.totals, query.totals_of_one, query.figures) == (("count",), True, ("depth",))
    assert query.columns[1].unit == "1/s"


@pytest.mark.parametrize(
    "text",
    [
        "select 1",
        HEADER,
        HEADER + "\n\n",
        TEXT.replace("-- title: How many\n", ""),
        TEXT.replace("-- about: The first line\n--   and the second.\n", ""),
        TEXT.replace("-- title: How many\n", "-- title: How many\n-- title: Again\n"),
        TEXT.replace("-- title: How many\n", "-- title: How many\n--   and more\n"),
        TEXT.replace("-- title:", "--title:"),
        TEXT.replace("-- title:", "-- titel:"),
        TEXT.replace("How many", ""),
        TEXT.replace("-- column: model | its name\n-- column: count | how many, number\n", ""),
        TEXT.replace("| its name", ""),
        TEXT.replace("-- column: count", "-- column: model"),
        TEXT.replace("limit INTEGER", "model INTEGER"),
        TEXT.replace("INTEGER", "INT"),
        TEXT.replace("= 10", "= ten"),
        TEXT.replace("limit INTEGER", "limit"),
        TEXT.replace("-- param: limit", "-- param: Limit"),
        TEXT.replace("| at most so many", ""),
        "--   begins with a continuation\n" + TEXT,
        "-- column: first | x\n" + TEXT,
        TEXT.replace("-- column: count", "-- a remark\n-- column: count"),
        TEXT.replace("select", "-- show: modle\nselect"),
        TEXT.replace("select", "-- show: both = model + count\nselect"),
        TEXT.replace("select", "-- total: model, other\nselect"),
        TEXT.replace("select", "-- show: model\n-- show: count\nselect"),
        TEXT.replace("select", "-- total: count\n-- total of one model: count\nselect"),
    ],
)
def test_a_malformed_header_is_a_bug(text: str) -> None:
    with pytest.raises(ValueError, match="query 'x'"):
        parse_query("x", text)


@given(st.text(alphabet="-tileabourmcn: |=\nVARCH", max_size=80))
def test_any_text_is_a_query_or_a_value_error(text: str) -> None:
    try:
        query = parse_query("x", text)
    except ValueError:
        return
    assert query.title
    assert query.columns


def bind(**values: object) -> dict[str, object]:
    return dict(parse_query("how_many", TEXT).bind({"above": 0} | values))


def test_defaults_are_filled_in() -> None:
    assert bind() == {"model": None, "limit": 10, "above": 0.0, "heads": False}


@pytest.mark.parametrize(
    ("name", "given_value", "value"),
    [
        ("limit", "12", 12),
        ("limit", 12, 12),
        ("limit", "-1", -1),
        ("limit", None, None),
        ("above", "1e-3", 0.001),
        ("above", 3, 3.0),
        ("heads", "true", True),
        ("heads", "No", False),
        ("heads", "1", True),
        ("heads", False, False),
        ("model", "12", "12"),
        ("model", "", ""),
        ("model", None, None),
    ],
)
def test_values_are_converted_to_the_parameter_s_type(name: str, given_value: object, value: object) -> None:
    bound = bind(**{name: given_value})[name]
    assert (bound, type(bound)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("limit", "ten", "'ten' is not a whole number"),
        ("limit", "1.5", "'1.5' is not a whole number"),
        ("limit", 1.5, "1.5 is not a whole number"),
        ("limit", True, "True is not a whole number"),
        ("limit", str(2**40), "out of range"),
        ("limit", "9" * 5000, "is not a whole number"),
        ("above", "much", "'much' is not a number"),
        ("above", "nan", "not finite"),
        ("above", True, "True is not a number"),
        ("heads", "maybe", "'maybe' is neither true nor false"),
        ("model", 5, "5 is not text"),
    ],
)
def test_a_value_that_does_not_fit_says_which_and_why(name: str, value: object, said: str) -> None:
    with pytest.raises(QueryError, match=f"'how_many', parameter '{name}': .*{re.escape(said)}"):
        bind(**{name: value})


def test_a_parameter_without_default_must_be_given() -> None:
    with pytest.raises(QueryError, match="needs parameter 'above': the least value"):
        parse_query("how_many", TEXT).bind({})


def test_an_unknown_parameter_names_the_known_and_the_nearest() -> None:
    with pytest.raises(QueryError) as refused:
        bind(modle="x")
    assert "no parameter 'modle'; did you mean 'model'? known: model, limit, above, heads" in str(refused.value)


def test_an_unknown_query_names_the_nearest_or_else_all(store: Store) -> None:
    with pytest.raises(QueryError) as refused:
        store.query("outlier_shares")
    assert "no query 'outlier_shares'; did you mean 'outlier_share'?" in str(refused.value)
    assert "ablation_controls" not in str(refused.value), "a list of all would hide the answer"
    with pytest.raises(QueryError, match=r"known: ablation_controls, ablation_curve") as refused:
        store.query("\x1b[31m")
    for query in store.queries():
        assert query.name in str(refused.value)


@pytest.mark.parametrize("name", ["../queries/scans", "/etc/passwd", "scans.sql", ""])
def test_a_query_s_name_is_no_path(store: Store, name: str) -> None:
    with pytest.raises(QueryError, match="no query"):
        store.query(name)


EVERY = list(load_queries().values())


def test_the_package_brings_the_queries_that_the_documents_speak_of() -> None:
    names = {query.name for query in EVERY}
    assert names >= {
        *("scans", "spectrum_by_role", "pvalues_by_role", "outliers", "outlier_share", "layer_trend"),
        *("control_check", "role_table"),
    }
    assert [query.name for query in EVERY] == sorted(names)


def test_every_query_file_is_listed(store: Store) -> None:
    files = Path(__file__).parents[2].joinpath("queries").glob("*.sql")
    assert [query.name for query in store.queries()] == sorted(path.stem for path in files)


@pytest.mark.parametrize("query", EVERY, ids=lambda query: query.name)
def test_the_declared_columns_are_those_that_come_back(store: Store, query: Query) -> None:
    answer = store.query(query.name)
    assert answer.schema.names == [column.name for column in query.columns]
    assert answer.num_rows == 0


@pytest.mark.parametrize("query", EVERY, ids=lambda query: query.name)
def test_every_declared_parameter_is_used_and_no_other(store: Store, query: Query) -> None:
    [statement] = store._database().connection.extract_statements(query.sql)
    assert statement.named_parameters == {param.name for param in query.params}


@pytest.mark.parametrize("query", EVERY, ids=lambda query: query.name)
def test_every_query_file_could_be_run_as_sql(store: Store, query: Query) -> None:
    params = {param.name: param.default for param in query.params}
    assert store.sql(query.sql, params).schema == store.query(query.name).schema


def test_text_in_a_parameter_is_never_sql(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    for query in EVERY:
        for param in query.params:
            given_value = {param.name: "' or 1=1; drop table scans; --"}
            if param.type == "MODEL":
                with pytest.raises(QueryError, match="there is no model"):
                    store.query(query.name, **given_value)
            elif param.type == "VARCHAR" and param.name != "measure":
                assert store.query(query.name, **given_value).num_rows == 0


def test_a_registered_query_is_found_and_answered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries_module, "_REGISTERED", {})
    text = "\n".join(
        [
            "-- title: A number",
            "-- about: Twice the parameter.",
            "-- param: n INTEGER = 2 | the number",
            "-- column: m | twice",
            "select 2 * $n as m",
        ]
    )
    register_query("toy_number", text)
    assert "toy_number" in [query.name for query in store.queries()]
    assert [*load_queries()] == sorted(load_queries())
    assert store.query("toy_number", n="4").to_pylist() == [{"m": 8}]
    with pytest.raises(ValueError, match="already a query of the package"):
        register_query("outliers", text)
    with pytest.raises(ValueError, match="header"):
        register_query("toy_other", "select 1")
