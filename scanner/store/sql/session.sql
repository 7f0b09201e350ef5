-- Settings of a fresh connection. Python variables of the caller are no tables; timestamps are shown in UTC.
-- Half of the memory for DuckDB, so that an answer and its Arrow copy fit together.
set memory_limit = '50%';
set python_enable_replacements = false;
set timezone = 'UTC';
create schema files;
