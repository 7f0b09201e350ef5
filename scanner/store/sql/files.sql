-- Rows of several Parquet files. The empty table fixes the columns' types and their order; columns that only some
-- files have are null elsewhere; a folder that is called `x=1` adds no column x.
create view {quoted} as
from files.empty_{table}
union all by name
from read_parquet(getvariable('{view}'), union_by_name = true, hive_partitioning = false);
