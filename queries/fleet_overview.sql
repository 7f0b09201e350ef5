-- title: Overview of all models, one row each
-- about: Coverage, cost and the main result of each model, latest first. p-values and outliers are those of whole matrices.
--   Models without any matrix are included. Differences (delta:BASE..TUNED) do not count as models and are included only
--   if named.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- column: model | name of the model
-- column: revision | commit or content hash, first 12 characters
-- column: architecture | class of the model
-- column: base_model | model from which it was made
-- column: parameters | number of parameters of the checkpoint
-- column: finished_at [UTC] | when its last scan finished
-- column: scans | number of scans of this revision
-- column: failed | number of tensors that could not be analyzed, over these scans
-- column: seconds | worker seconds, over these scans
-- column: layers | number of blocks
-- column: matrices | number of analyzed matrices
-- column: slices | number of analyzed slices of attention heads
-- column: p | mean p-value of both sides; 0.5 for random matrices
-- column: p_scale | mean p-value of both sides under the scale null, of the matrices that have one
-- column: below_percent | singular values below the Marchenko-Pastur bulk, percent
-- column: above_percent | singular values above the Marchenko-Pastur bulk, percent
-- column: learned_role | role with the smallest mean p-value
-- column: learned_p | its mean p-value
-- column: random_role | role with the largest mean p-value
-- column: random_p | its mean p-value
-- show: model, layers, matrices, failed, p, p_scale, above_percent, learned_role, learned_p
-- total: matrices, failed
with coverage as (
    select
        model,
        left(any_value(revision), 12) as revision,
        any_value(architecture) as architecture,
        any_value(base_model) as base_model,
        max(parameters) as parameters,
        max(finished_at) as finished_at,
        count(*)::integer as scans,
        sum(failed)::integer as failed,
        sum(seconds) as seconds
    from scans
    semi join chosen_scans($model, $revision) using (scan_id)
    group by model
),

roles as (
    select
        model,
        role,
        count(*) filter (where head is null) as matrices,
        count(head) as slices,
        (avg(u_p_mean) filter (where head is null) + avg(v_p_mean) filter (where head is null)) / 2 as p,
        (avg(u_p_scale_mean) filter (where head is null) + avg(v_p_scale_mean) filter (where head is null)) / 2 as p_scale,
        sum(outliers_left) filter (where head is null) as outliers_left,
        sum(outliers_right) filter (where head is null) as outliers_right,
        sum(least(rows, cols)) filter (where head is null) as singular_values
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    group by model, role
),

results as (
    select
        model,
        sum(matrices)::integer as matrices,
        sum(slices)::integer as slices,
        sum(p * matrices) / sum(matrices) filter (where p is not null) as p,
        sum(p_scale * matrices) / sum(matrices) filter (where p_scale is not null) as p_scale,
        100 * sum(outliers_left) / sum(singular_values) as below_percent,
        100 * sum(outliers_right) / sum(singular_values) as above_percent,
        arg_min(role, p) as learned_role,
        min(p) as learned_p,
        arg_max(role, p) as random_role,
        max(p) as random_p
    from roles
    group by model
),

depth as (
    select model, count(*)::integer as layers
    from (
        select distinct model, stack, layer
        from matrices
        semi join chosen_scans($model, $revision) using (scan_id)
        where layer is not null
    )
    group by model
)

select
    coverage.*,
    coalesce(layers, 0) as layers,
    coalesce(matrices, 0) as matrices,
    coalesce(slices, 0) as slices,
    p,
    p_scale,
    below_percent,
    above_percent,
    learned_role,
    learned_p,
    random_role,
    random_p
from coverage
left join results using (model)
left join depth using (model)
order by finished_at desc nulls last, model;
