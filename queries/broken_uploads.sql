-- title: Models with matrices that were not trained, are zero, or hold NaN
-- about: One row per model and defect. not_finite: matrices with NaN or infinite entries. zero: matrices without a singular value
--   that is not numerically zero. untrained: matrices that cannot be told from random ones: the mean p-values of their left and
--   right singular vectors are within four standard errors of 0.5, none of their singular values is outside the Marchenko-Pastur
--   bulk by more than one in a hundred, and the spectrum follows the law (mp_ks < 0.05). Matrices with fewer than 32 rows or columns are not
--   judged. Real models have a few matrices that look random; share says how many.
-- param: night VARCHAR = NULL | models of the releases that were scanned in this night only
-- column: model | name of the model
-- column: revision | commit, first 12 characters
-- column: defect | not_finite, zero or untrained
-- column: matrices | number of such matrices
-- column: of | number of matrices of the model that could be judged
-- column: share | matrices / of
-- column: example | name of one such tensor
-- show: model, revision, defect, matrices, of, share, example
with chosen as (
    select scan_id, model, left(revision, 12) as revision, matrices, failed
    from scans
    semi join night_scans($night) using (scan_id)
),

judged as (
    select
        scan_id,
        tensor,
        rank = 0 as zero,
        rank > 0
        and least(rows, cols) >= 32
        and abs(u_p_mean - 0.5) <= 4 * sqrt(1 / 12 / rank)
        and abs(v_p_mean - 0.5) <= 4 * sqrt(1 / 12 / rank)
        and 100 * (outliers_left + outliers_right) <= least(rows, cols)
        and mp_ks < 0.05 as untrained,
        least(rows, cols) >= 32 as large
    from matrices
    semi join chosen using (scan_id)
    where head is null
),

defects as (
    select scan_id, 'not_finite' as defect, count(*) as found, null as of, min(tensor) as example
    from failures
    semi join chosen using (scan_id)
    where error = 'NotFiniteError'
    group by scan_id
    union all
    select scan_id, 'zero', count(*) filter (where zero), count(*), min(tensor) filter (where zero)
    from judged
    group by scan_id
    union all
    select
        scan_id,
        'untrained',
        count(*) filter (where untrained),
        count(*) filter (where large),
        min(tensor) filter (where untrained)
    from judged
    group by scan_id
)

select
    model,
    revision,
    defect,
    found::integer as matrices,
    coalesce(of, chosen.matrices + chosen.failed)::integer as of,
    found / coalesce(of, chosen.matrices + chosen.failed) as share,
    example
from defects
join chosen using (scan_id)
where found > 0
order by share desc, model, revision, defect;
