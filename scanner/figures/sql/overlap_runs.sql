-- Runs over activations, the newest first.
select distinct
    run_id,
    model,
    finished_at
from (select distinct run_id, model from "overlaps")
left join experiments using (run_id, model)
where ($model is null or model = $model) and ($run is null or run_id = $run)
order by finished_at desc nulls last, run_id;
