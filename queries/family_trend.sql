-- title: Change of roles over the revisions or training checkpoints of a model
-- about: One row per checkpoint, in the order of time, with the mean of one measure over the matrices of each role. Checkpoints are
--   the revisions of one model or, with family, all models whose names begin with it (such as the folders checkpoint-500 and
--   checkpoint-1000) and their revisions. Time is when the scan finished. A step is read from names such as step1000,
--   checkpoint-1000, ckpt_500, iter200 or epoch3 in the revision or the name of the model (with family, in the name first); commits
--   and content hashes have no step. With by_step, checkpoints with a step come first, in the order of the steps, and the others
--   follow by time. Differences (delta:BASE..TUNED) are left out unless named. Random matrices have a mean p-value of 0.5.
--   `checkpoint_roles` has all measures at once.
-- param: model MODEL = NULL | this model only
-- param: family VARCHAR = NULL | models whose names begin with this, as checkpoints of one training run
-- param: measure VARCHAR = p | p (mean p-value of both sides), u_p, v_p, p_scale (under the scale null), below_percent and above_percent
--   (singular values outside the bulk), mp_ks, stable_rank, stable_rank_percent, effective_rank_percent or spectral_norm
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: by_step BOOLEAN = FALSE | order by the step in the name instead of the time of the scan
-- column: family | name of the model, or the common prefix
-- column: place | 1 = the first checkpoint
-- column: model | name of the model
-- column: revision | commit, tag or content hash
-- column: step | step in the name of the revision or model; NULL if there is none
-- column: finished_at [UTC] | when its first scan finished
-- column: matrices | number of matrices
-- column: overall | mean over all matrices
-- column: since_first | overall minus that of the first checkpoint
-- column: query | mean over the query matrices
-- column: key | mean over the key matrices
-- column: value | mean over the value matrices
-- column: attn_out | mean over the output matrices of attention
-- column: mlp_up | mean over the up-projections
-- column: mlp_gate | mean over the gates
-- column: mlp_down | mean over the down-projections
-- column: other | mean over all other matrices (embedding, lm_head, router, other)
-- show: model, step, revision, overall, since_first, query, key, value, attn_out, mlp_up, mlp_gate, mlp_down, other
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

chosen as (
    select
        *,
        role_column(role) as place
    from matrices
    where
        ($model is null or model = $model)
        and ($family is null or starts_with(model, $family))
        and (head is not null) = $heads and role not in ('qk', 'ov')
),

cells as (
    select
        model,
        revision,
        place,
        count(*)::integer as matrices,
        measured(chosen, $measure) as measured
    from chosen
    group by grouping sets ((model, revision), (model, revision, place))
),

trend as (
    select
        model,
        revision,
        max(matrices) as matrices,
        max(measured) filter (where place is null) as overall,
        max(measured) filter (where place = 'query') as query,
        max(measured) filter (where place = 'key') as key,
        max(measured) filter (where place = 'value') as value,
        max(measured) filter (where place = 'attn_out') as attn_out,
        max(measured) filter (where place = 'mlp_up') as mlp_up,
        max(measured) filter (where place = 'mlp_gate') as mlp_gate,
        max(measured) filter (where place = 'mlp_down') as mlp_down,
        max(measured) filter (where place = 'other') as other
    from cells
    group by model, revision
)

select
    family,
    (row_number() over in_time)::integer as place,
    trend.model,
    trend.revision,
    step,
    finished_at,
    matrices,
    overall,
    overall - first_value(overall) over in_time as since_first,
    trend.* exclude (model, revision, matrices, overall)
from trend
join checkpoints on checkpoints.model = trend.model and checkpoints.revision is not distinct from trend.revision
window in_time as (
    partition by family
    order by
        case when $by_step then step end nulls last, finished_at nulls first, trend.model, trend.revision
)
order by family, place;
