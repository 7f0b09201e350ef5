-- The rows of a view.
select * from {name};
