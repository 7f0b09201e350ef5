-- Shapes of the matrices that CPU cores analyzed, with the tests of their singular vectors, and how long that took.
select rows, cols, count(*) as matrices, sum(seconds) as seconds
from matrices
where device = 'cpu' and head is null and seconds > 0 and v_p_mean is not null
group by rows, cols;
