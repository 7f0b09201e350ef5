-- Random controls of one shape; for ensembles with several seeds, the first seed.
select ensemble, seed, k, singular_value, u_p_local, v_p_local
from controls
where
    rows = $rows
    and cols = $cols
qualify seed = min(seed) over (partition by ensemble)
order by ensemble, k;
