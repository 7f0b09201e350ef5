-- Runs of ablations, the newest first.
select run_id, model, finished_at
from experiments
where kind = 'ablation' and ($model is null or model = $model) and ($run is null or run_id = $run)
order by finished_at desc nulls last, run_id;
