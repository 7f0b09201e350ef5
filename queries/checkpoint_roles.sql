-- title: Every measure of every role over the revisions or training checkpoints of a model
-- about: One row per role and checkpoint, in the order of time. Checkpoints are the revisions of one model or, with family, all
--   models whose names begin with it (such as the folders checkpoint-500 and checkpoint-1000) and their revisions. Time is
--   when the scan finished. A step is read from names such as step1000, checkpoint-1000, ckpt_500, iter200 or epoch3 in
--   the revision or the name of the model (with family, in the name first); commits and content hashes have no step. With
--   by_step, checkpoints with a step come first, in the order of the steps, and the others follow by time. Differences
--   (delta:BASE..TUNED) are left out unless named. Random matrices have a mean p-value of 0.5. `family_trend`
--   has one row per checkpoint.
-- param: model MODEL = NULL | this model only
-- param: family VARCHAR = NULL | models whose names begin with this, as checkpoints of one training run
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: by_step BOOLEAN = FALSE | order by the step in the name instead of the time of the scan
-- column: family | name of the model, or the common prefix
-- column: role | role of the matrix in its block
-- column: place | 1 = the first checkpoint
-- column: model | name of the model
-- column: revision | commit, tag or content hash
-- column: step | step in the name of the revision or model; NULL if there is none
-- column: finished_at [UTC] | when its first scan finished
-- column: matrices | matrices of this role
-- column: u_p | left singular vectors: mean p-value
-- column: v_p | right singular vectors: mean p-value
-- column: p | mean of u_p and v_p
-- column: p_change | p minus p of the previous checkpoint
-- column: p_since_first | p minus p of the first checkpoint
-- column: below_percent | singular values below the Marchenko-Pastur bulk, percent
-- column: above_percent | singular values above the Marchenko-Pastur bulk, percent
-- column: spectral_norm | largest singular value, mean
-- column: stable_rank | stable rank, mean
-- show: model, role, place, revision, step, matrices, p, p_change, p_since_first, below_percent, above_percent
with checkpoints as (
    select
        model,
        revision,
        coalesce($family, model) as family,
        min(finished_at) as finished_at,
        training_step(if($family is null, [revision, model], [model, revision])) as step
    from scans
    where
        ($model is null or model = $model)
        and ($family is null or starts_with(model, $family))
        and (coalesce($model, $family) is not null or not starts_with(model, 'delta:'))
    group by model, revision
),

roles as (
    select
        model,
        revision,
        role,
        count(*)::integer as matrices,
        avg(u_p_mean) as u_p,
        avg(v_p_mean) as v_p,
        (avg(u_p_mean) + avg(v_p_mean)) / 2 as p,
        100 * sum(outliers_left) / sum(least(rows, cols)) as below_percent,
        100 * sum(outliers_right) / sum(least(rows, cols)) as above_percent,
        avg(spectral_norm) as spectral_norm,
        avg(stable_rank) as stable_rank
    from matrices
    where
        ($model is null or model = $model)
        and ($family is null or starts_with(model, $family))
        and ($role is null or role = $role)
        and (head is not null) = $heads and role not in ('qk', 'ov')
    group by model, revision, role
)

select
    family,
    role,
    (row_number() over in_time)::integer as place,
    roles.model,
    roles.revision,
    step,
    finished_at,
    matrices,
    u_p,
    v_p,
    p,
    p - lag(p) over in_time as p_change,
    p - first_value(p) over in_time as p_since_first,
    below_percent,
    above_percent,
    spectral_norm,
    stable_rank
from roles
join checkpoints on checkpoints.model = roles.model and checkpoints.revision is not distinct from roles.revision
window in_time as (
    partition by family, role
    order by
        case when $by_step then step end nulls last, finished_at nulls first, roles.model, roles.revision
)
order by family, role_order(role), role, place;
