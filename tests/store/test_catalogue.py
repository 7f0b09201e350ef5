from pathlib import Path

from scanner.store.catalogue import catalogue
from scanner.store.documentation import documentation
from scanner.store.queries import load_queries, parse_query
from scanner.store.tables import TABLES

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = DOCS / "queries.md"


def test_the_document_is_what_the_headers_say() -> None:
    stale = "run: python -m scanner.store.catalogue > docs/queries.md"
    assert DOCUMENT.read_text("utf-8") == catalogue(load_queries().values()), stale


def test_the_document_of_the_tables_is_what_their_definitions_say() -> None:
    stale = "run: make docs"
    assert (DOCS / "tables.md").read_text("utf-8") == documentation(TABLES.values()), stale


def test_every_table_and_column_is_documented() -> None:
    shown = documentation(TABLES.values())
    for table in TABLES.values():
        section = shown.split(f"\n## {table.name}\n")[1].split("\n## ")[0]
        assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == [
            column.name for column in table.columns
        ]


def test_every_parameter_and_column_has_its_line() -> None:
    text = """\
-- title: How many|which
-- about: The first line
--   and the second.
-- param: model VARCHAR = NULL | a|b
--   and c
-- param: heads BOOLEAN = FALSE | heads
-- param: above DOUBLE | the least value
-- column: cell [1/s] | left|right
-- column: more | other
-- show: cell
select 1
"""
    shown = catalogue([parse_query("how_many", text)])
    assert shown.endswith(
        r"""
| query | answers |
|---|---|
| [`how_many`](#how_many) | How many\|which |

## how_many

**How many|which**

The first line
and the second.

| parameter | type | default | |
|---|---|---|---|
| `model` | VARCHAR | NULL | a\|b and c |
| `heads` | BOOLEAN | false | heads |
| `above` | DOUBLE | required | the least value |

| column | unit | |
|---|---|---|
| **`cell`** | 1/s | left\|right |
| `more` |  | other |
"""
    )
