-- What a column of a DuckDB file is.
comment on column {name} is {text};
