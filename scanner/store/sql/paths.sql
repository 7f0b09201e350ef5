-- The files that view {view} reads. Bound, so that no character of a path can mean anything in SQL.
set variable "{view}" = $paths;
