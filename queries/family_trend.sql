-- title: How roles change over the revisions or training checkpoints of a model
-- about: One line per role and checkpoint, in the order of time. Checkpoints are the revisions of one model, or, with
--   family, all models whose names begin with that (the folders checkpoint-500, checkpoint-1000, say) and their
--   revisions. Time is when the scan was finished. A step is read from names like step1000, checkpoint-1000, ckpt_500, iter200 or
--   epoch3 in the revision or the model's name (with family the other way round); commits and content hashes have none. If
--   by_step, checkpoints with a step come in its order, then the others in time. Differences (delta:BASE..TUNED) are left out
--   unless named. Random matrices have mean p-value 0.5.
-- param: model VARCHAR = NULL | only this model
-- param: family VARCHAR = NULL | models whose names begin with this, as checkpoints of one training
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- param: by_step BOOLEAN = FALSE | order by the step in the name instead of the time of the scan
-- column: family | the model's name, or the common beginning
-- column: role | what the matrix does in its block
-- column: place | 1 = the first checkpoint
-- column: model | the model's name
-- column: revision | commit, tag or content hash
-- column: step | as the name of the revision or the model says; empty where none does
-- column: finished_at | when its first scan was finished, UTC
-- column: matrices | matrices of this role
-- column: u_p | left vectors: mean p-value
-- column: v_p | right vectors: mean p-value
-- column: p | mean of u_p and v_p
-- column: p_change | p minus that of the checkpoint before
-- column: p_since_first | p minus that of the first checkpoint
-- column: left_percent | singular values below the Marchenko-Pastur bulk, per cent
-- column: right_percent | singular values above it, per cent
-- column: spectral_norm | largest singular value, mean
-- column: stable_rank | mean
with checkpoints as (
    select
        model,
        revision,
        coalesce($family, model) as family,
        min(finished_at) as finished_at,
        list_transform(
            if($family is null, [revision, model], [model, revision]),
            lambda name: try_cast(
                regexp_extract_all(name, '(?i)(?:step|checkpoint|ckpt|iter|epoch)s?[-_]?([0-9]+)', 1)[-1] as bigint
            )
        ) as steps,
        coalesce(steps[1], steps[2]) as step
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
        100 * sum(outliers_left) / sum(least(rows, cols)) as left_percent,
        100 * sum(outliers_right) / sum(least(rows, cols)) as right_percent,
        avg(spectral_norm) as spectral_norm,
        avg(stable_rank) as stable_rank
    from matrices
    where
        ($model is null or model = $model)
        and ($family is null or starts_with(model, $family))
        and ($role is null or role = $role)
        and (head is not null) = $heads
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
    left_percent,
    right_percent,
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
