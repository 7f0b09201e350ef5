-- title: What a model loses when its norms leave out a tenth of their directions
-- about: One line per run, order and decile of the activation covariance's eigenvalues (appendix F of arXiv 2410.17770v1, the
--   construction of SliceGPT). Decile 1 has the smallest eigenvalues.
-- param: model VARCHAR = NULL | only this model
-- param: run VARCHAR = NULL | only this run
-- column: model | the model's name
-- column: dataset | what it is measured on
-- column: metric | perplexity, accuracy or kl
-- column: place | before norm: its input is projected; after norm: what it has divided by its length
-- column: decile | which tenth is left out, 1 the smallest eigenvalues
-- column: removed | directions, over all norms
-- column: baseline | the intact model's value
-- column: value | the value without these directions
-- column: delta | the difference
-- column: stderr | standard error of the difference
-- column: run_id | the run
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
