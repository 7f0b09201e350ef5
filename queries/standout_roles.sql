-- title: Roles that differ from the same role in other models
-- about: Each role of a model is compared with the same role in the newest scans of all other models, by four measures: p (mean
--   p-value of the singular vectors), below and above (shares of singular values below and above the Marchenko-Pastur bulk) and
--   effective_rank (as a share of the largest possible rank). z is the distance from the median of the others in robust standard
--   deviations (1.4826 times the median absolute deviation). Roles of which fewer than least other models have one are left out.
--   The largest |z| comes first.
-- param: night VARCHAR = NULL | models of the releases that were scanned in this night only
-- param: least INTEGER = 5 | number of other models that must have the role
-- param: z DOUBLE = 5 | smallest |z| that is listed
-- column: model | name of the model
-- column: revision | commit, first 12 characters
-- column: role | role of the matrices
-- column: measure | p, below, above or effective_rank
-- column: value | mean over the matrices of the role
-- column: median | median of the other models
-- column: z | distance in robust standard deviations
-- column: models | number of other models
-- column: matrices | number of matrices of the role
-- show: model, role, measure, value, median, z, models
with roles as (
    select
        matrices.scan_id,
        model,
        left(revision, 12) as revision,
        role,
        count(*)::integer as matrices,
        avg((u_p_mean + v_p_mean) / 2) as p,
        sum(outliers_left) / sum(least(rows, cols)) as below,
        sum(outliers_right) / sum(least(rows, cols)) as above,
        avg(effective_rank / least(rows, cols)) as effective_rank
    from matrices
    where head is null and not starts_with(model, 'delta:')
    group by all
),

measures as (
    unpivot roles
    on p, below, above, effective_rank
    into name measure value value
),

chosen as (
    select *
    from measures
    semi join night_scans($night) using (scan_id)
),

others as (
    select *
    from measures
    semi join chosen_scans(null, null) using (scan_id)
),

compared as (
    select
        chosen.scan_id,
        chosen.model,
        chosen.revision,
        chosen.role,
        chosen.measure,
        chosen.value,
        chosen.matrices,
        count(*)::integer as models,
        median(others.value) as median,
        mad(others.value) as spread
    from chosen
    join others
        on others.role = chosen.role
        and others.measure = chosen.measure
        and others.model != chosen.model
    group by all
)

select
    model,
    revision,
    role,
    measure,
    value,
    median,
    (value - median) / (1.4826 * nullif(spread, 0)) as z,
    models,
    matrices
from compared
where models >= $least and abs((value - median) / (1.4826 * nullif(spread, 0))) >= $z
order by abs((value - median) / (1.4826 * nullif(spread, 0))) desc, model, role_order(role), role, measure;
