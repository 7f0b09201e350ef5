-- Columns of the singular triplets of the whole matrices of one model, one row per matrix, largest singular value first.
select
    scan_id,
    tensor,
    role,
    expert,
    count(*) as triplets,
    list(singular_value::float order by k) as singular_value,
    list(u_p order by k) as u_p,
    list(v_p order by k) as v_p,
    list(u_p_scale order by k) as u_p_scale,
    list(v_p_scale order by k) as v_p_scale,
    list(scale_density::float order by k) as scale_density
from vectors
semi join chosen_scans($model, null) using (scan_id)
where head is null
group by scan_id, tensor, role, expert
order by scan_id, tensor, role, expert;
