-- title: Randomness of the singular vectors along the spectrum, by role
-- about: Locally averaged p-values of the Kolmogorov-Smirnov test of every singular vector, averaged rank by rank over the
--   matrices of one role and shape. Random vectors have a mean of 0.5; lower values differ from i.i.d. The
--   control columns are the same for random matrices of that shape and stay at 0.5, up to noise.
-- chart: pvalues_by_role
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: k | rank of the singular triplet, 0 = largest singular value
-- column: matrices | number of matrices in the average
-- column: u_p_local | left singular vectors: mean of the locally averaged p-value
-- column: v_p_local | right singular vectors: mean of the locally averaged p-value
-- column: control_u_p_local | left singular vectors of random matrices of this shape; NULL without controls
-- column: control_v_p_local | right singular vectors of random matrices of this shape; NULL without controls
-- show: model, role, shape = rows x cols, matrices, k, u_p_local, v_p_local, control_u_p_local, control_v_p_local
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
