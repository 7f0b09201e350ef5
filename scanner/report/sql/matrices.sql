-- Whole matrices of one model (null: of all models, except differences) with the columns of the table of matrices, in the order of
-- the forward pass.
select
    scan_id,
    model,
    stack,
    layer,
    role,
    module,
    expert,
    tensor,
    rows,
    cols,
    dtype,
    sigma,
    sigma_kind,
    sigma_median,
    sigma_std,
    sigma_init,
    sigma_bulk,
    mp_lower,
    mp_upper,
    outliers_left,
    outliers_right,
    scale_lower,
    scale_upper,
    outliers_left_scale,
    outliers_right_scale,
    rank,
    mp_ks,
    spectral_norm,
    stable_rank,
    effective_rank,
    u_p_mean as u_p,
    v_p_mean as v_p,
    (u_p_mean + v_p_mean) / 2 as p,
    (u_p_scale_mean + v_p_scale_mean) / 2 as p_scale,
    bulk_failed
from matrices
semi join chosen_scans($model, null) using (scan_id)
where head is null
order by stack desc nulls first, layer nulls last, role_order(role), role, module nulls first, expert, tensor;
