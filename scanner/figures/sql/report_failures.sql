-- What could not be analysed in one model.
select tensor, stage, error, message
from failures
semi join chosen_scans($model, null) using (scan_id)
order by tensor nulls first, stage
limit $most;
