-- Settings of a new connection. Python variables of the caller are not tables; timestamps are shown in UTC.
-- Half of the memory for DuckDB, so that a result and its Arrow copy fit into memory.
set memory_limit = '50%';
set python_enable_replacements = false;
set timezone = 'UTC';
create schema files;
