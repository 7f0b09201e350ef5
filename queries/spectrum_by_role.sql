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
        scan_id,
        tensor,
        head,
        expert,
        model,
        role,
        rows,
        cols,
        -- One number for what a line of the answer is about: a fleet has too many lines to group by texts.
        dense_rank() over (order by model, role_order(role), role, rows, cols) as place,
        nullif(sigma, 0) * sqrt(greatest(rows, cols)) as scale,
        mp_lower / scale as mp_lower,
        mp_upper / scale as mp_upper
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    where ($role is null or role = $role) and (head is not null) = $heads
),

places as (
    select
        place,
        any_value(model) as model,
        any_value(role) as role,
        any_value(rows) as rows,
        any_value(cols) as cols,
        avg(mp_lower) as mp_lower,
        avg(mp_upper) as mp_upper
    from scales
    group by place
),

spectrum as (
    select
        scales.place,
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
        -- Twice as fast as `is not distinct from`.
        and coalesce(scales.head, -1) = coalesce(vectors.head, -1)
        and coalesce(scales.expert, -1) = coalesce(vectors.expert, -1)
    where ($role is null or vectors.role = $role) and (vectors.head is not null) = $heads
    group by scales.place, vectors.k
)

select
    places.model,
    places.role,
    places.rows,
    places.cols,
    spectrum.k,
    spectrum.matrices,
    spectrum.singular_value,
    spectrum.singular_value_std,
    places.mp_lower,
    places.mp_upper
from spectrum
join places using (place)
order by place, k;
