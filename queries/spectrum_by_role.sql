-- title: Mean spectrum by role, with the Marchenko-Pastur law
-- about: Singular values of all matrices of one role and shape, averaged rank by rank, in units of sigma sqrt(hi) with hi =
--   max(rows, cols), so that matrices of different scale can be averaged. Those of random matrices lie between mp_lower
--   and mp_upper, which are 1 -/+ sqrt(min / max) if the whole spectrum is one bulk; values outside come from training.
-- chart: spectra_by_role
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: k | rank of the singular value, 0 = largest
-- column: matrices | number of matrices in the average
-- column: singular_value [σ√hi] | mean singular value, in units of sigma sqrt(hi)
-- column: singular_value_std | sample standard deviation over the matrices, same units; NULL for a single matrix
-- column: mp_lower | lower edge of the Marchenko-Pastur law, mean, same units
-- column: mp_upper | upper edge of the Marchenko-Pastur law, mean, same units
-- show: model, role, shape = rows x cols, matrices, k, singular_value, singular_value_std, mp_lower, mp_upper
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
        -- A number for each group of the result: with many models, grouping by text is too slow.
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
        on scales.scan_id = vectors.scan_id and same_matrix(scales, vectors)
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
