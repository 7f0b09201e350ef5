-- title: Damage from removing a set of singular values
-- about: delta = value - baseline, with random sets of the same size from the same matrices. stderr is the standard error of
--   delta over windows or examples, paired with those of the intact model. Decile 1 has the smallest singular values.
-- param: model MODEL = NULL | this model only
-- param: run VARCHAR = NULL | this run only (one model, metric, text and precision)
-- param: metric VARCHAR = NULL | this metric only: perplexity, accuracy or kl
-- column: run_id | one model, metric, text and precision
-- column: model | name of the model
-- column: metric | perplexity, accuracy or kl (nats per token)
-- column: roles | roles of the changed matrices
-- column: layers | blocks of the changed matrices
-- column: set | set of singular values that was removed
-- column: removed | number of removed singular values, over all matrices
-- column: fraction | share of all singular values of these matrices
-- column: baseline | value of the intact model
-- column: value | value without the set
-- column: delta | value - baseline
-- column: stderr | standard error of delta
-- column: random_delta | mean delta of random sets of the same size
-- column: random_sets | number of random sets
-- show: model, metric, roles, layers, baseline, set, removed, value, delta, stderr, random_delta, run_id
with points as (from ablation_points($model, $run, $metric))

select
    run_id,
    model,
    metric,
    roles,
    layers,
    set,
    removed,
    fraction,
    baseline,
    value,
    delta,
    stderr,
    random_delta,
    random_sets
from points
left join random_sets() using (run_id, roles, layers, removed)
where
    beside is null and not starts_with(set, 'random:')
    -- Random sets are rows of their own if no other set of the run has their size.
    or not exists (
        from points as other
        where
            (other.run_id, other.roles, other.layers, other.removed)
            = (points.run_id, points.roles, points.layers, points.removed)
            and not starts_with(other.set, 'random:')
    )
order by
    model,
    metric,
    run_id,
    role_order(split_part(roles, ',', 1)),
    roles,
    try_cast(regexp_extract(layers, '\d+') as integer),
    layers,
    split_part(set, ':', 1),
    try_cast(split_part(set, ':', 2) as integer),
    list_position(['left', 'bulk', 'right'], split_part(set, ':', 2)),
    set;
