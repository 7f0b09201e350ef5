-- Committed comparisons, kept in memory.
create table comparisons as
from files.comparisons;
