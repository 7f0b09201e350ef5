-- Runs of one kind (ablation, slicing), those with the newest point first: the run's own row is as old as its baseline.
select
    experiments.run_id,
    experiments.model,
    greatest(experiments.finished_at, max(ablations.finished_at)) as finished_at
from experiments
left join ablations using (run_id)
where experiments.kind = $kind
group by experiments.run_id, experiments.model, experiments.finished_at
order by 3 desc nulls last, 1;
