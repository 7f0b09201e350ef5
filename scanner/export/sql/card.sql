-- The whole matrices of one model by role, for a model card.
select
    role,
    count(*) as matrices,
    sum(least(rows, cols))::bigint as values,
    sum(outliers_left)::bigint as below,
    sum(outliers_right)::bigint as above,
    sum(outliers_left_scale + outliers_right_scale)::bigint as outside_scale,
    avg(u_p_mean) as u_p,
    avg(v_p_mean) as v_p,
    avg(u_p_scale_mean) as u_p_scale,
    avg(v_p_scale_mean) as v_p_scale,
    string_agg(distinct sigma_kind, ', ' order by sigma_kind) as sigma_kinds
from matrices
semi join chosen_scans($model, null) using (scan_id)
where head is null
group by role
order by role_order(role), role;
