-- A view of all results in a DuckDB file, where they are the newest results.
create view {name} as from {of};
