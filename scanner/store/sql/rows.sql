-- Rows that were read before; `rows` is a temporarily registered Arrow table.
create table {quoted} as from rows;
