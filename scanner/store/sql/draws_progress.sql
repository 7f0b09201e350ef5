-- Whether DuckDB draws the progress of queries.
select current_setting('enable_progress_bar') as draws;
