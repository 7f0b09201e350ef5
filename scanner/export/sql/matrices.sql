-- Whole matrices of one model with their singular values and mean p-values by rank, in the order of the forward pass.
with spectra as (
    select
        scan_id,
        tensor,
        role,
        expert,
        list(singular_value order by k) as singular_values,
        list(coalesce((u_p_scale + v_p_scale) / 2, (u_p + v_p) / 2) order by k) as p_values
    from vectors
    semi join chosen_scans($model, null) using (scan_id)
    where head is null
    group by scan_id, tensor, role, expert
)

select
    matrices.tensor,
    stack,
    layer,
    matrices.role,
    module,
    matrices.expert,
    rows,
    cols,
    outliers_left_scale + outliers_right_scale as outliers,
    (u_p_mean + v_p_mean) / 2 as p,
    (u_p_scale_mean + v_p_scale_mean) / 2 as p_scale,
    scale_kind is not null as has_scale,
    singular_values,
    p_values
from matrices
semi join chosen_scans($model, null) using (scan_id)
inner join spectra
    on
        matrices.scan_id = spectra.scan_id
        and matrices.tensor = spectra.tensor
        and matrices.role = spectra.role
        and matrices.expert is not distinct from spectra.expert
where head is null
order by stack desc nulls first, layer nulls last, role_order(matrices.role), module nulls first, matrices.expert, matrices.tensor;
