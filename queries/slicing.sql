-- title: Damage from removing a tenth of the directions at the norms
-- about: One row per run, order and decile of the eigenvalues of the activation covariance (appendix F of arXiv 2410.17770v1,
--   the construction of SliceGPT). Decile 1 has the smallest eigenvalues.
-- param: model MODEL = NULL | this model only
-- param: run VARCHAR = NULL | this run only
-- column: model | name of the model
-- column: dataset | text of the measurement
-- column: metric | perplexity, accuracy or kl
-- column: place | before norm: the input of the norm is projected; after norm: the normalized vector is projected
-- column: decile | removed decile, 1 = smallest eigenvalues
-- column: removed | number of removed directions, over all norms
-- column: baseline | value of the intact model
-- column: value | value without these directions
-- column: delta | value - baseline
-- column: stderr | standard error of delta
-- column: run_id | id of the run
-- show: model, dataset, metric, baseline, place, decile, removed, value, delta, stderr
select
    a.model,
    a.dataset,
    a.metric,
    a.roles as place,
    try_cast(split_part(a.set, ':', 2) as integer) as decile,
    a.removed,
    a.baseline,
    a.value,
    a.delta,
    a.stderr,
    a.run_id
from ablations as a
where a.set like 'slice:%' and ($model is null or a.model = $model) and ($run is null or a.run_id = $run)
order by a.model, a.dataset, a.metric, a.run_id, place desc, decile;
