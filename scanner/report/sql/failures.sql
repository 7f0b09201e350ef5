-- Tensors of one model (null: of all models, except differences) that could not be analyzed; at most $most of a model.
select scans.model, tensor, stage, error, message
from failures
join scans using (scan_id)
semi join chosen_scans($model, null) using (scan_id)
qualify row_number() over (partition by scans.model order by tensor nulls first, stage, error, message) <= $most
order by tensor nulls first, stage, error, message;
