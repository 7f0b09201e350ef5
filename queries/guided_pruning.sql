-- title: Pruning of the most random singular values, the smallest, and random ones
-- about: Damage from removing the same share of the singular values of every matrix: those whose vectors look most random
--   (largest local p-values, mean of both sides), the smallest (a truncated SVD), and random ones. The points come from
--   `rmtscan ablate --sets pruning`.
-- param: model MODEL = NULL | this model only
-- param: run VARCHAR = NULL | this run only (one model, metric, text and precision)
-- param: metric VARCHAR = NULL | this metric only: perplexity, accuracy or kl
-- column: run_id | one model, metric, text and precision
-- column: model | name of the model
-- column: metric | perplexity, accuracy or kl (nats per token)
-- column: roles | roles of the changed matrices
-- column: layers | blocks of the changed matrices
-- column: percent | removed share
-- column: baseline | value of the intact model
-- column: most_random | delta without the most random singular values
-- column: most_random_stderr | its standard error
-- column: smallest | delta without the smallest singular values
-- column: smallest_stderr | its standard error
-- column: random | delta without random singular values, mean over the random sets
-- column: random_stderr | upper bound of its standard error, since the sets share windows or examples
-- show: model, metric, roles, layers, baseline, percent, most_random, most_random_stderr, smallest, smallest_stderr, random,
--   random_stderr
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
