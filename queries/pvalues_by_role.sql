-- title: Randomness of the singular vectors along the spectrum, by role
-- about: Locally averaged p-values of the Kolmogorov-Smirnov test of every singular vector, averaged rank by rank over
--   the matrices of one role and shape. Random vectors have mean 0.5; the lower, the more was learned there. The
--   control columns are the same for random matrices of that shape and stay at 0.5, up to noise.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- column: model | the model's name
-- column: role | what the matrix does in its block
-- column: rows | output features
-- column: cols | input features
-- column: k | rank of the singular triplet, 0 = largest singular value
-- column: matrices | matrices averaged over
-- column: u_p_local | left vectors: mean of the locally averaged p-value
-- column: v_p_local | right vectors: the same
-- column: control_u_p_local | left vectors of random matrices of this shape, mean over the controls; empty without any
-- column: control_v_p_local | right vectors: the same
with control as (
    select rows, cols, k, avg(u_p_local) as u_p_local, avg(v_p_local) as v_p_local
    from controls
    group by rows, cols, k
),

measured as (
    select
        model,
        role,
        rows,
        cols,
        k,
        count(*)::integer as matrices,
        avg(u_p_local) as u_p_local,
        avg(v_p_local) as v_p_local
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where ($role is null or role = $role) and (head is not null) = $heads
    group by model, role, rows, cols, k
)

select
    measured.*,
    control.u_p_local as control_u_p_local,
    control.v_p_local as control_v_p_local
from measured
left join control using (rows, cols, k)
order by measured.model, role_order(measured.role), measured.role, rows, cols, k;
