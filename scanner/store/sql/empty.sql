-- Columns and types of the table without rows; `empty` is a temporarily registered Arrow table.
create table files.empty_{table} as from empty;
