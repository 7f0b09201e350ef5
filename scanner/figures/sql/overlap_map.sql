-- Root mean square of |v_k . f_j| sqrt(n) in cells of the map of a matrix: the newest run that has it.
with chosen as (
    select run_id, tensor, role
    from overlap_maps
    left join (select run_id, finished_at from experiments) using (run_id)
    where
        model = $model
        and ($run is null or run_id = $run)
        and ($role is null or role = $role)
        and ($layer is null or layer = $layer)
    group by all
    order by any_value(finished_at) desc nulls last, run_id, tensor, role
    limit 1
),

map as (
    select
        *,
        1 + max(k) over () as vectors
    from overlap_maps
    semi join chosen using (run_id, tensor, role)
    where centred = $centred
)

select
    any_value(run_id) as run_id,
    any_value(role) as role,
    any_value(layer) as layer,
    any_value(cols) as cols,
    any_value(vectors) as vectors,
    any_value(tokens) as tokens,
    min(k) as k_first,
    max(k) + 1 as k_last,
    min(j) as j_first,
    max(j) + 1 as j_last,
    sqrt(avg(overlap ** 2) * any_value(cols)) as overlap
from map
group by (k * $bins) // vectors, (j * $bins) // cols
order by k_first, j_first;
