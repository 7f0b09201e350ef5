-- More rows of a table of a DuckDB file; `rows` is a temporarily registered Arrow table.
insert into {quoted} from rows;
