-- Rows of several Parquet files. The empty table determines types and order of the columns; columns that a file lacks are null; a
-- folder with a name such as `x=1` does not add a column x.
create view {quoted} as
from files.empty_{table}
union all by name
from read_parquet(getvariable('{view}'), union_by_name = true, hive_partitioning = false);
