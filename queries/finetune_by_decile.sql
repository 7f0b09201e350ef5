-- title: Accuracy after fine-tuning with a decile of the singular values removed before or after it
-- about: One row per order and decile, averaged over the seeds, with the untouched runs of the same base, data and recipe (v1
--   Fig. 8, v3 Fig. 6). With roles `before norm` or `after norm`, a decile of the directions of the activations was projected out at
--   every norm instead (v1, App. F). sigma is the standard deviation of the untouched runs over seeds; a change of more than 3 sigma is
--   more than chance, but sigma is imprecise if there are few seeds. paired_delta compares each run with the untouched run of the
--   same seed (the same head, dropout and order of the examples), so that differences between seeds cancel; its 95 % interval is
--   Student's t over the seeds, and is not corrected for the number of rows.
-- param: base MODEL = NULL | this base model only
-- param: dataset VARCHAR = NULL | this dataset only
-- param: roles VARCHAR = NULL | removal from these roles only (`all`, names separated by commas, `before norm` or `after norm`)
-- param: run VARCHAR = NULL | this run only (run_id)
-- column: run_id | one base, one dataset, one recipe: all points of a run are comparable
-- column: base_model | model that was fine-tuned
-- column: dataset | data set of the fine-tuning
-- column: order | none: untouched; remove-first: removed before fine-tuning; tune-first: removed after it
-- column: roles | roles of the matrices from which the decile was removed; before norm, after norm: where it was projected out
-- column: decile | 1: smallest tenth of the singular values of each matrix (of the eigenvalues at each norm); 10: largest
-- column: seeds | number of runs
-- column: accuracy | mean accuracy
-- column: spread | standard deviation over the seeds
-- column: untouched | mean accuracy of the untouched runs
-- column: three_sigma | three standard deviations of the untouched runs over their seeds
-- column: delta | accuracy minus that of the untouched runs
-- column: delta_sigma | delta in units of sigma; NULL with fewer than two untouched seeds
-- column: pairs | number of seeds that have an untouched run, too
-- column: paired_delta | mean over these seeds of accuracy minus that of the untouched run
-- column: paired_stderr | its standard error over the seeds; NULL with fewer than two
-- column: low | lower end of its 95 % interval
-- column: high | upper end
-- column: examples | number of training texts
-- column: epochs | number of passes over them
-- column: finished_at | when the newest of these runs finished
-- show: base_model, dataset, roles, order, decile, seeds, accuracy, untouched, delta, interval = low .. high
with untouched as (
    select
        run_id,
        avg(accuracy) as accuracy,
        stddev_samp(accuracy) as sigma
    from finetunes
    where "order" = 'none'
    group by run_id
),

-- A run has one model content and one data set; if these were renamed between two calls, the newest names are used.
named as (
    select
        run_id,
        arg_max(base_model, (finished_at, base_model)) as base_model,
        arg_max(dataset, (finished_at, dataset)) as dataset
    from finetunes
    group by run_id
),

pairs as (
    select tuned.*, tuned.accuracy - same.accuracy as difference
    from finetunes as tuned
    left join finetunes as same
        on same.run_id = tuned.run_id and same.seed = tuned.seed and same."order" = 'none' and tuned."order" != 'none'
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
        max(finished_at) as finished_at,
        count(difference)::integer as pairs,
        avg(difference) as paired_delta,
        stddev_samp(difference) / sqrt(count(difference)) as paired_stderr
    from pairs
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
    p.pairs,
    p.paired_delta,
    p.paired_stderr,
    p.paired_delta - t_quantile(p.pairs - 1) * p.paired_stderr as low,
    p.paired_delta + t_quantile(p.pairs - 1) * p.paired_stderr as high,
    p.examples,
    p.epochs,
    p.finished_at
from points as p
join named on p.run_id = named.run_id
left join untouched as u on p.run_id = u.run_id
where ($base is null or named.base_model = $base) and ($dataset is null or named.dataset = $dataset)
order by named.base_model, named.dataset, p.run_id, p.roles nulls first, p."order", p.decile;
