-- title: Runs of experiments, latest first
-- about: One row per run: the content of a model, a text, and everything else that determines the numbers. Its points are in
--   the tables ablations (ablation, slicing, lazy-learning), finetunes, or overlaps and activation_spectra (activations).
-- param: model MODEL = NULL | this model only
-- param: kind VARCHAR = NULL | this kind only: activations, ablation, slicing, finetune or lazy-learning
-- column: run_id | id of the run, the value of `--param run=` of other queries
-- column: kind | activations, ablation, slicing, finetune or lazy-learning; NULL if the run was interrupted before its first result
-- column: model | name of the model
-- column: dataset | text or data set
-- column: tokens | number of tokens that were read
-- column: points | number of measured points; for activations, of matrices
-- column: finished_at [UTC] | when the newest point or the run finished
-- show: kind, model, dataset, points, finished_at, run_id
with measured as (
    select run_id, arg_max(model, (finished_at, model)) as model, count(*) as points, max(finished_at) as finished_at
    from ablations
    where set != 'none'
    group by run_id
    union all
    select run_id, arg_max(base_model, (finished_at, base_model)), count(*), max(finished_at)
    from finetunes
    group by run_id
    union all
    select run_id, min(model), count(distinct tensor), null
    from "overlaps"
    group by run_id
)

select
    run_id,
    kind,
    coalesce(measured.model, experiments.model) as model,
    dataset,
    tokens,
    coalesce(points, 0)::integer as points,
    greatest(measured.finished_at, experiments.finished_at) as finished_at
from experiments
full join measured using (run_id)
where
    ($model is null or coalesce(measured.model, experiments.model) = $model)
    and ($kind is null or kind = $kind)
order by finished_at desc nulls last, run_id;
