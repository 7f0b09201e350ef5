-- Rows of some of the results in a file that holds those of many.
create view {quoted} as
from read_parquet(getvariable('{view}'), union_by_name = true, hive_partitioning = false)
semi join (select unnest(getvariable('{view} ids')) as {id_column}) using ({id_column});
