-- Singular values, p_local, p under the scale null and its density of the whole matrices of one model, one row per matrix, largest singular value first.
select
    scan_id,
    tensor,
    role,
    expert,
    list(singular_value order by k) as s,
    list(u_p_local order by k) as u,
    list(v_p_local order by k) as v,
    list(u_p_scale order by k) as u_scale,
    list(v_p_scale order by k) as v_scale,
    list(scale_density order by k) as law
from vectors
semi join chosen_scans($model, null) using (scan_id)
where
    head is null
    and (expert is null or $expert is null or expert = $expert)
    and (layer is null or layer % $every = 0)
group by scan_id, tensor, role, expert;
