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
with spectrum as (
    select model, role, rows, cols, scan_id, tensor, head, expert, k, singular_value
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where ($role is null or role = $role) and (head is not null) = $heads
),

scales as (
    select
        scan_id,
        tensor,
        role,
        head,
        expert,
        nullif(sigma, 0) * sqrt(greatest(rows, cols)) as scale,
        mp_lower,
        mp_upper
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    where ($role is null or role = $role) and (head is not null) = $heads
)

select
    spectrum.model,
    spectrum.role,
    spectrum.rows,
    spectrum.cols,
    spectrum.k,
    count(*)::integer as matrices,
    avg(spectrum.singular_value / scales.scale) as singular_value,
    stddev_samp(spectrum.singular_value / scales.scale) as singular_value_std,
    avg(scales.mp_lower / scales.scale) as mp_lower,
    avg(scales.mp_upper / scales.scale) as mp_upper
from spectrum
join scales
    on scales.scan_id = spectrum.scan_id
    and scales.tensor = spectrum.tensor
    and scales.role = spectrum.role
    and scales.head is not distinct from spectrum.head
    and scales.expert is not distinct from spectrum.expert
group by spectrum.model, spectrum.role, spectrum.rows, spectrum.cols, spectrum.k
order by
    spectrum.model, role_order(spectrum.role), spectrum.role, spectrum.rows, spectrum.cols, spectrum.k;
