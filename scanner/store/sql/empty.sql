-- The table's columns and types without a row; `empty` is an Arrow table registered for the moment.
create table files.empty_{table} as from empty;
