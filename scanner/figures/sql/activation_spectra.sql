-- Eigenvalues of the activations of a model, centered or not, over the matrices of a role: geometric mean and the middle 80 %. Where
-- that of one of them is zero within the rounding of float64 (largest eigenvalue * number * epsilon), `eigenvalue` is null: of fewer
-- tokens than features, and of features that a norm has made dependent, such eigenvalues are noise.
with measured as (
    select
        role,
        index,
        eigenvalue,
        eigenvalue > max(eigenvalue) over of_matrix * count(*) over of_matrix * 2.220446049250313e-16 as positive
    from activation_spectra
    semi join chosen_activations($model, $run) using (run_id, tensor, role)
    where
        centred = $centred
        and ($role is null or role = $role)
        and ($layer is null or layer = $layer)
    window of_matrix as (partition by run_id, tensor, role)
)

select
    role,
    index + 1 as number,
    count(*)::integer as matrices,
    case when bool_and(positive) then exp(avg(ln(case when positive then eigenvalue end))) end as eigenvalue,
    case when bool_and(positive) then quantile_cont(eigenvalue, 0.1) end as low,
    case when bool_and(positive) then quantile_cont(eigenvalue, 0.9) end as high
from measured
group by role, index
order by role_order(role), role, index;
