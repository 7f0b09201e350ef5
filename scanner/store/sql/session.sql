-- Settings of a fresh connection. Python variables of the caller are no tables; timestamps are shown in UTC.
set python_enable_replacements = false;
set timezone = 'UTC';
create schema files;
