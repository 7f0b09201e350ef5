-- Tensors of one model that could not be analyzed.
select tensor, stage, error, message
from failures
semi join chosen_scans($model, null) using (scan_id)
order by tensor nulls first, stage
limit $most;
