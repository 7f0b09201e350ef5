import subprocess
import sys
from pathlib import Path

from scanner.store.catalogue import catalogue
from scanner.store.queries import load_queries, parse_query

DOCUMENT = Path(__file__).parents[2] / "docs" / "queries.md"


def test_the_document_is_what_the_headers_say() -> None:
    stale = "run: python -m scanner.store.catalogue > docs/queries.md"
    assert DOCUMENT.read_text("utf-8") == catalogue(load_queries().values()), stale


def test_the_module_prints_the_document() -> None:
    command = [sys.executable, "-m", "scanner.store.catalogue"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == catalogue(load_queries().values())


def test_every_parameter_and_column_has_its_line() -> None:
    text = """\
-- title: How many|which
-- about: The first line
--   and the second.
-- param: model VARCHAR = NULL | a|b
--   and c
-- param: heads BOOLEAN = FALSE | heads
-- param: above DOUBLE | the least value
-- column: cell | left|right
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

| column | |
|---|---|
| `cell` | left\|right |
"""
    )
