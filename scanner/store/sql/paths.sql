-- The files that view {view} reads. They are bound, so that no character of a path can be SQL.
set variable "{view}" = $paths;
