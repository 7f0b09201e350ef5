-- Runs of one kind (ablation, slicing), the newest first.
select run_id, model, finished_at
from experiments
where kind = $kind
order by finished_at desc nulls last, run_id;
