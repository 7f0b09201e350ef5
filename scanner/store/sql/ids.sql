-- The results that view {view} selects.
set variable "{view} ids" = $ids;
