-- Points of the selected runs (null: all), without the intact model. A run has one content and one text: if they were renamed between
-- two calls, its points have the newest names.
create macro ablation_points(wanted_model, wanted_run, wanted_metric) as table
select *
from (
    select
        ablations.* replace (
            first_value(model) over newest_first as model,
            first_value(revision) over newest_first as revision,
            first_value(dataset) over newest_first as dataset
        )
    from ablations
    semi join (select run_id from experiments where kind = 'ablation') using (run_id)
    window newest_first as (partition by run_id order by finished_at desc nulls last, model, dataset)
)
where
    (wanted_model is null or model = wanted_model)
    and (wanted_run is null or run_id = wanted_run)
    and (wanted_metric is null or metric = wanted_metric)
    and set != 'none';
