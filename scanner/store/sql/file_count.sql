-- Number of rows of a view.
select count(*) as rows from {name};
