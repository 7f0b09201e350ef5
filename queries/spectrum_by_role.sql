-- title: Mean spectrum by role, beside the Marchenko-Pastur law
-- about: Singular values of all matrices of one role and shape, averaged rank by rank, in units of sigma sqrt(hi) with
--   hi = max(rows, cols), so that matrices of different scale can be averaged. Random matrices stay between mp_lower
--   and mp_upper, 1 -/+ sqrt(min / max) when the whole spectrum is one bulk; values outside were put there by training.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- column: model | the model's name
-- column: role | what the matrix does in its block
-- column: rows | output features
-- column: cols | input features
-- column: k | rank of the singular value, 0 = largest
-- column: matrices | matrices averaged over
-- column: singular_value | mean, in units of sigma sqrt(hi)
-- column: singular_value_std | sample standard deviation between the matrices, same units; empty for one matrix
-- column: mp_lower | lower edge of the Marchenko-Pastur law, mean, same units
-- column: mp_upper | upper edge, mean, same units
with scales as (
    select
        model,
        scan_id,
        tensor,
        role,
        head,
        expert,
        rows,
        cols,
        nullif(sigma, 0) * sqrt(greatest(rows, cols)) as scale,
        mp_lower / scale as mp_lower,
        mp_upper / scale as mp_upper
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    where ($role is null or role = $role) and (head is not null) = $heads
),

-- The same at every rank.
edges as (
    select model, role, rows, cols, avg(mp_lower) as mp_lower, avg(mp_upper) as mp_upper
    from scales
    group by model, role, rows, cols
),

spectrum as (
    select
        vectors.model,
        vectors.role,
        vectors.rows,
        vectors.cols,
        vectors.k,
        count(*)::integer as matrices,
        avg(vectors.singular_value / scales.scale) as singular_value,
        stddev_samp(vectors.singular_value / scales.scale) as singular_value_std
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    join scales
        on scales.scan_id = vectors.scan_id
        and scales.tensor = vectors.tensor
        and scales.role = vectors.role
        and scales.head is not distinct from vectors.head
        and scales.expert is not distinct from vectors.expert
    where ($role is null or vectors.role = $role) and (vectors.head is not null) = $heads
    group by vectors.model, vectors.role, vectors.rows, vectors.cols, vectors.k
)

select spectrum.*, edges.mp_lower, edges.mp_upper
from spectrum
join edges using (model, role, rows, cols)
order by model, role_order(role), role, rows, cols, k;
