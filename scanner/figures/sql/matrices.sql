-- Matrices of one model in one revision (null: the newest), in the order of the forward pass.
select
    scan_id,
    model,
    revision,
    tensor,
    stack,
    layer,
    role,
    head,
    expert,
    module,
    rows,
    cols,
    sigma,
    sigma_kind,
    mp_lower,
    mp_upper,
    outliers_left,
    outliers_right,
    scale_lower,
    scale_upper,
    outliers_left_scale,
    outliers_right_scale,
    scale_failure,
    u_p_mean,
    v_p_mean
from matrices
semi join chosen_scans($model, $revision) using (scan_id)
order by stack desc nulls first, layer nulls last, role_order(role), role, module nulls first, expert, head, tensor;
