-- p_local of the random controls of one shape, averaged over ensembles, largest singular value first.
select k, avg(u_p_local) as u, avg(v_p_local) as v
from controls
where
    rows = $rows
    and cols = $cols
group by k
order by k;
