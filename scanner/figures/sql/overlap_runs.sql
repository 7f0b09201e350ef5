-- Runs of the activations experiment, newest first.
select distinct
    run_id,
    model,
    dataset,
    tokens,
    finished_at
from (select distinct run_id, model from "overlaps")
left join experiments using (run_id, model)
order by finished_at desc nulls last, run_id;
