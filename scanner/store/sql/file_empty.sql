-- The columns of a view, without rows.
select * from {name} limit 0;
