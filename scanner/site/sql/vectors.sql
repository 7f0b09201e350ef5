-- Columns of the singular triplets of one model (null: of all models, except differences), one row per matrix, slice or product, largest
-- singular value first.
select
    model,
    scan_id,
    tensor,
    role,
    head,
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
group by model, scan_id, tensor, role, head, expert
order by model, scan_id, tensor, role, head nulls first, expert;
