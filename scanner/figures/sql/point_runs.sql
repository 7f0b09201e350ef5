-- Runs of one kind (ablation, slicing), those with the newest point first: the run's own row is as old as its baseline. A run that
-- has its baseline and no other point yet is none.
select
    experiments.run_id,
    experiments.model,
    greatest(experiments.finished_at, max(ablations.finished_at)) as finished_at
from experiments
inner join ablations using (run_id)
where experiments.kind = $kind and ablations.set != 'none'
group by experiments.run_id, experiments.model, experiments.finished_at
order by 3 desc nulls last, 1;
