-- title: Accuracy after fine-tuning with a decile of the singular values removed before it or after it
-- about: One line per order and decile, averaged over the seeds, beside the untouched runs of the same base, data and recipe (v1
--   Fig. 8, v3 Fig. 6). sigma is the untouched runs' standard deviation over seeds; beyond 3 of it a change is more than chance
--   (few seeds know their sigma badly).
-- param: base VARCHAR = NULL | only this base model
-- param: dataset VARCHAR = NULL | only this dataset
-- param: roles VARCHAR = NULL | only removal from these roles (`all`, or names separated by commas)
-- param: run VARCHAR = NULL | only this run (run_id)
-- column: run_id | one base, one dataset, one recipe: everything in it is comparable
-- column: base_model | what was fine-tuned
-- column: dataset | on what
-- column: order | none: untouched; remove-first: before fine-tuning; tune-first: after it
-- column: roles | the matrices that the decile was removed from
-- column: decile | 1: the smallest tenth of each matrix's singular values, 10: the largest
-- column: seeds | how many runs
-- column: accuracy | their mean accuracy
-- column: spread | standard deviation over the seeds
-- column: untouched | mean accuracy of the untouched runs
-- column: three_sigma | three standard deviations of the untouched runs over their seeds
-- column: delta | accuracy minus that of the untouched runs
-- column: delta_sigma | the same in units of sigma; empty where fewer than two seeds are untouched
-- column: examples | texts that each run was trained on
-- column: epochs | passes over them
-- column: finished_at | when the newest of these runs was
with untouched as (
    select
        run_id,
        avg(accuracy) as accuracy,
        stddev_samp(accuracy) as sigma
    from finetunes
    where "order" = 'none'
    group by run_id
),

-- A run is one content and one data set: where these were renamed between two calls, it goes by the newest names.
named as (
    select
        run_id,
        arg_max(base_model, (finished_at, base_model)) as base_model,
        arg_max(dataset, (finished_at, dataset)) as dataset
    from finetunes
    group by run_id
),

points as (
    select
        run_id,
        "order",
        roles,
        decile,
        count(*) as seeds,
        avg(accuracy) as accuracy,
        stddev_samp(accuracy) as spread,
        any_value(examples) as examples,
        any_value(epochs) as epochs,
        max(finished_at) as finished_at
    from finetunes
    where
        ($roles is null or roles = $roles or "order" = 'none')
        and ($run is null or run_id = $run)
    group by run_id, "order", roles, decile
)

select
    p.run_id,
    named.base_model,
    named.dataset,
    p."order",
    p.roles,
    p.decile,
    p.seeds,
    p.accuracy,
    p.spread,
    u.accuracy as untouched,
    3 * u.sigma as three_sigma,
    p.accuracy - u.accuracy as delta,
    (p.accuracy - u.accuracy) / nullif(u.sigma, 0) as delta_sigma,
    p.examples,
    p.epochs,
    p.finished_at
from points as p
join named on p.run_id = named.run_id
left join untouched as u on p.run_id = u.run_id
where ($base is null or named.base_model = $base) and ($dataset is null or named.dataset = $dataset)
order by named.base_model, named.dataset, p.run_id, p.roles nulls first, p."order", p.decile;
