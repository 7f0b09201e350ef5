-- title: What a model loses without a set of its singular values
-- about: delta = value - baseline, beside random sets of the same size from the same matrices. stderr is the standard error of
--   delta over windows or examples, paired with those of the intact model. decile 1 holds the smallest singular values.
-- param: model VARCHAR = NULL | only this model
-- param: run VARCHAR = NULL | only this run (one model, metric, text and precision)
-- param: metric VARCHAR = NULL | only perplexity, accuracy or kl
-- column: run_id | one model, metric, text and precision
-- column: model | the model's name
-- column: metric | perplexity, accuracy or kl (nats a token)
-- column: roles | roles that were changed
-- column: layers | blocks that were changed
-- column: set | the singular values that were taken out
-- column: removed | how many, over all matrices
-- column: fraction | of all their singular values
-- column: baseline | the intact model
-- column: value | without the set
-- column: delta | value - baseline
-- column: stderr | standard error of delta
-- column: random_delta | mean delta of random sets of the same size
-- column: random_sets | how many there are
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
    not starts_with(set, 'random:')
    -- Random sets that stand for themselves.
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
