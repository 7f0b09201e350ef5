-- Mean p-values and p-values under the scale null of the whole matrices of one model (null: of all models, except differences), by
-- place in the model, role and decile of the spectrum (1 = smallest singular values). Experts of one layer are averaged.
select
    model,
    stack,
    layer,
    role,
    module,
    10 - (10 * k) // least(rows, cols) as decile,
    avg(u_p) as u,
    avg(v_p) as v,
    avg(u_p_scale) as u_scale,
    avg(v_p_scale) as v_scale
from vectors
semi join chosen_scans($model, null) using (scan_id)
where
    head is null
    and role not in ('qk', 'ov')
group by all;
