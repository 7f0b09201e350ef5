-- Runs with a map, newest first.
select distinct
    run_id,
    model,
    dataset,
    finished_at
from (select distinct run_id, model from overlap_maps)
left join experiments using (run_id, model)
order by finished_at desc nulls last, run_id;
