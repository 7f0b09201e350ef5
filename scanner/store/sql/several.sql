-- Rows of several relations with the columns of one table, whose types and order the empty table determines.
create view {quoted} as
from files.empty_{table}{relations};
