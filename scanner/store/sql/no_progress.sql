-- DuckDB would draw the progress of a query of some seconds on stdout, between the data.
set enable_progress_bar = false;
