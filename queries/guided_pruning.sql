-- title: Pruning what looks most random, against the smallest singular values, against any
-- about: Damage when the same share of every matrix's singular values goes: those whose vectors look most random (largest local
--   p-values, mean of both sides), the smallest (a truncated SVD), and random ones. Points come from ablate --sets pruning.
-- param: model VARCHAR = NULL | only this model
-- param: run VARCHAR = NULL | only this run (one model, metric, text and precision)
-- param: metric VARCHAR = NULL | only perplexity, accuracy or kl
-- column: run_id | one model, metric, text and precision
-- column: model | the model's name
-- column: metric | perplexity, accuracy or kl (nats a token)
-- column: roles | roles that were changed
-- column: layers | blocks that were changed
-- column: percent | share that was taken out
-- column: baseline | the intact model
-- column: most_random | delta without those that look most random
-- column: most_random_stderr | its standard error
-- column: smallest | delta without the smallest
-- column: smallest_stderr | its standard error
-- column: random | delta without random ones, mean of the random sets
-- column: random_stderr | an upper bound of its standard error: the sets share windows or examples
with pruned as (
    select
        *,
        split_part(set, ':', 1) as kind,
        split_part(set, ':', 2)::integer as percent
    from ablation_points($model, $run, $metric)
    where regexp_matches(set, '^(smallest|most-random):\d+$')
)

select
    run_id,
    model,
    metric,
    roles,
    layers,
    percent,
    any_value(baseline) as baseline,
    any_value(delta) filter (where kind = 'most-random') as most_random,
    any_value(stderr) filter (where kind = 'most-random') as most_random_stderr,
    any_value(delta) filter (where kind = 'smallest') as smallest,
    any_value(stderr) filter (where kind = 'smallest') as smallest_stderr,
    any_value(random_delta) as random,
    any_value(random_stderr) as random_stderr
from pruned
left join random_sets() using (run_id, roles, layers, removed)
group by run_id, model, metric, roles, layers, percent
order by
    model,
    metric,
    run_id,
    role_order(split_part(roles, ',', 1)),
    roles,
    try_cast(regexp_extract(layers, '\d+') as integer),
    layers,
    percent;
