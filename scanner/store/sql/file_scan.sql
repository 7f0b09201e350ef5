-- The rows of one scan in a view.
select * from {name} where scan_id = $scan_id;
