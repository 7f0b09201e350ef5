"""Every statement of the SQL cookbook runs on a real store and has an answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scanner.store import Store

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "sql.md"
STATEMENTS = re.findall(r"## ([^\n]+)\n(?:(?!##).)*?```sql\n(.*?)```", PAGE.read_text("utf-8"), re.S)


@pytest.mark.parametrize(("title", "statement"), STATEMENTS, ids=[title for title, _ in STATEMENTS])
def test_a_statement_of_the_cookbook_has_an_answer(full_store: Store, title: str, statement: str) -> None:
    answer = full_store.sql(statement)
    assert answer.column_names
    assert answer.num_rows > 0 or "failed" in title
