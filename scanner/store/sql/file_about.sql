-- What a row of a table of a DuckDB file is.
comment on table {name} is {text};
