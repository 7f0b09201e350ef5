-- Runs of one kind (ablation, slicing) by their newest point, since the row of the run itself is as old as its baseline. Runs without
-- a point other than the baseline are left out.
select
    experiments.run_id,
    experiments.model,
    greatest(experiments.finished_at, max(ablations.finished_at)) as finished_at
from experiments
inner join ablations using (run_id)
where experiments.kind = $kind and ablations.set != 'none'
group by experiments.run_id, experiments.model, experiments.finished_at
order by 3 desc nulls last, 1;
